"""MoCo: a query picks its key, made by a slowly moving teacher, out of a long queue of earlier keys.

He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (v1), and
Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020 (v2). The queue makes the number
of negatives independent of the batch; the momentum keeps its keys consistent.
"""

import copy
import math
from collections.abc import Sequence, Sized
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from sslmodules import views
from sslmodules.callbacks.queue import FeatureQueue
from sslmodules.distributed import gather, rank, world_size
from sslmodules.encoders import pool, split_batch_norm
from sslmodules.heads import mlp
from sslmodules.losses import info_nce, mutual_information_bound
from sslmodules.module import SSLModule

QUEUE_SIZE = 65536
VIEWS = {"moco_v1": views.moco_v1, "moco_v2": views.moco_v2}


class MoCo(SSLModule):
    """Momentum contrast with a queue (He et al. 2020; Chen et al. 2020c). Defaults: v2 on ImageNet, batch 256.

    :meth:`v1` and :meth:`v2` fill in the two papers' recipes. The queue is read before the keys of the batch enter it
    (:class:`~sslmodules.callbacks.QueueUpdate`), and the teacher moves after each optimizer step
    (:class:`~sslmodules.callbacks.MomentumUpdate`), that is before the next keys are made, as in the authors' code.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here.
        temperature: τ of the loss.
        momentum: m of the teacher, constant.
        queue_size: keys to remember; at least a global batch. It need not be a multiple of it. None: 65,536 (v1, v2),
            or as many as there are training images where these are fewer: a longer queue would hold several keys of an
            image, old ones among its own negatives.
        output_dim: length of queries and keys.
        hidden_dim: width of the projector's hidden layer; None is the encoder's, 0 leaves a single Linear (v1).
        augmentation: views of v1 or of v2.
        symmetric: also let the second view ask for the first, as in the authors' CIFAR demo.
        batch_norm_splits: on one device, batch norm over that many parts of the batch; 0 is ordinary batch norm.
        learning_rate: of SGD, taken as it is (0.03 at batch 256).
        weight_decay: of SGD.

    >>> method = MoCo("conv4", queue_size=64)
    >>> images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    >>> method.loss(method.make_views(images))["keys"].shape
    torch.Size([8, 128])
    """

    lr_batch_size = None
    momentum_rises = False

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue_size: int | None = None,
        output_dim: int = 128,
        hidden_dim: int | None = None,
        augmentation: Literal["moco_v1", "moco_v2"] = "moco_v2",
        symmetric: bool = False,
        batch_norm_splits: int = 0,
        mean: Sequence[float] | None = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] | None = IMAGENET_DEFAULT_STD,
        learning_rate: float = 0.03,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, mean=mean, std=std, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        if augmentation not in VIEWS:
            raise ValueError(f"augmentation is {augmentation!r}, expected one of {', '.join(VIEWS)}")
        self.temperature = temperature
        self.momentum = momentum
        self.symmetric = symmetric
        self.batch_norm_splits = max(1, batch_norm_splits)
        if self.batch_norm_splits > 1:
            split_batch_norm(self.encoder, self.batch_norm_splits)
        hidden = [] if hidden_dim == 0 else [hidden_dim or self.feature_dim]
        self.projector = mlp(self.feature_dim, *hidden, output_dim, norm=False)
        self.teacher_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.queue_size = queue_size
        self.queue = FeatureQueue(QUEUE_SIZE if queue_size is None else queue_size, output_dim)
        self.view = VIEWS[augmentation](self.size)

    @classmethod
    def v1(cls, encoder: str | nn.Module = "resnet50", **kwargs: Any) -> "MoCo":
        """Recipe of He et al. 2020: a single Linear, τ 0.07, weaker views, the rate to a tenth at epochs 120 and 160.

        >>> MoCo.v1("conv4", queue_size=64).temperature
        0.07
        """
        recipe = {"hidden_dim": 0, "temperature": 0.07, "augmentation": "moco_v1", "milestones": (120, 160)}
        return cls(encoder, **{**recipe, **kwargs})

    @classmethod
    def v2(cls, encoder: str | nn.Module = "resnet50", **kwargs: Any) -> "MoCo":
        """Recipe of Chen et al. 2020c: the MLP projector, τ 0.2, blur, a cosine. These are the defaults."""
        recipe = {"hidden_dim": None, "temperature": 0.2, "augmentation": "moco_v2", "milestones": None}
        return cls(encoder, **{**recipe, **kwargs})

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and projector, each with its teacher."""
        return [(self.encoder, self.teacher_encoder), (self.projector, self.teacher_projector)]

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Query view and key view of each image."""
        return [self.normalize(self.view(images, self.generator)) for _ in range(2)]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """InfoNCE of the query against its key and the queue; ``"keys"`` are what enters the queue afterwards."""
        first, second = views
        h = self.encode(first)  # (B, D)
        q = F.normalize(self.project(h), dim=1)  # (B, d)
        k = self.keys(second)
        loss, accuracy = info_nce(q, k, self.queue.features, self.temperature, with_accuracy=True)
        keys = k
        if self.symmetric:
            k2 = self.keys(first)
            other, _ = info_nce(
                self.project(self.encode(second)), k2, self.queue.features, self.temperature, with_accuracy=True
            )
            loss, keys = (loss + other) / 2, torch.cat([k, k2])
        return {
            "loss": loss,
            "features": h.detach(),
            "projections": q.detach(),
            "keys": keys,
            "pair_accuracy": accuracy,
            "mutual_information": mutual_information_bound(loss, candidates=1 + len(self.queue)),
        }

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """Keys (B, d) of a view (B, C, H, W), normalised among other images than their queries (shuffling BN).

        The parts that share batch statistics, devices or splits of a batch, are dealt out anew like cards. The order of
        the data is random already, so a fixed deal is as good as a random one, and all ranks know it.
        """
        groups = self.batch_norm_splits * world_size()
        if groups == 1 or not self.training or not _has_local_batch_norm(self.teacher_encoder):
            return F.normalize(self.teacher_projector(pool(self.teacher_encoder(view))), dim=1)
        everyone = gather(view)  # (W·B, C, H, W)
        n, mine = len(everyone), slice(rank() * len(view), (rank() + 1) * len(view))
        groups = math.gcd(n, groups)
        deal = torch.arange(n, device=view.device).view(groups, n // groups).T.flatten()
        k = F.normalize(self.teacher_projector(pool(self.teacher_encoder(everyone[deal[mine]]))), dim=1)
        return gather(k)[deal.argsort()[mine]]

    def on_train_start(self) -> None:
        """Shorten a default queue to the number of training images; warn of a longer one that was asked for."""
        super().on_train_start()
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        if not isinstance(dataset, Sized) or self.trainer.global_step:  # a resumed run keeps its queue
            return
        images = math.ceil(len(dataset) / world_size()) * world_size()  # samplers give every rank as many
        if images >= len(self.queue):
            return
        if self.queue_size is None:
            self.queue.resize(images)
            rank_zero_info(f"queue: {images:,} keys, as many as there are training images, and not {QUEUE_SIZE:,}")
        else:
            rank_zero_warn(
                f"the queue of {len(self.queue):,} keys is longer than the training set of {images:,} images, so an "
                f"image meets old keys of its own among the negatives; pass queue_size={images} (--model.queue_size "
                f"{images}) or less"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give a default queue the length that it has in the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["state_dict"].get("queue.features")
        if self.queue_size is None and saved is not None:
            self.queue.resize(len(saved))

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """SGD, momentum 0.9."""
        return SGD(groups, lr=lr, momentum=0.9, weight_decay=self.weight_decay)


def _has_local_batch_norm(module: nn.Module) -> bool:
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(not isinstance(m, nn.SyncBatchNorm) for m in norms)
