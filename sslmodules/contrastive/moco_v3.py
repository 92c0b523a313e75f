"""MoCo v3: momentum contrast without a queue, for large batches and for transformers.

Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021. Both views ask and
answer; the negatives are the other keys of the (large) batch; a predictor stands between query and key.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sslmodules import views
from sslmodules.distributed import world_size
from sslmodules.encoders import pool
from sslmodules.heads import mlp
from sslmodules.losses import info_nce, mutual_information_bound
from sslmodules.module import SSLModule
from sslmodules.optim import LARS


class MoCoV3(SSLModule):
    """Momentum contrast in the batch with a predictor (Chen et al. 2021). Defaults: ResNet-50, batch 4,096.

    :meth:`vit` fills in the recipe for transformers. Per direction the loss is the cross-entropy times 2τ, and the two
    directions are summed. Norms and biases have no weight decay (in the authors' AdamW they have).

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here.
        temperature: τ; 1.0 for ResNet-50 and 0.2 for ViT, as the authors' code runs them.
        momentum: m of the teacher at the start; it rises to 1 by a cosine.
        output_dim: length of queries and keys.
        hidden_dim: width of the hidden layers of projector and predictor.
        projector_layers: 2 for ResNet-50, 3 for ViT.
        predictor_norm: batch norm (without scale and shift) behind the predictor, as for ViT.
        min_scale: smallest share of the image's area that a crop covers; 0.2 for ResNet-50, 0.08 for ViT.
        optimizer_name: ``"lars"``, or ``"adamw"`` as for ViT.
        learning_rate: for a batch of 256; scaled in proportion to the global batch.
        weight_decay: of the optimizer.

    >>> method = MoCoV3("conv4", hidden_dim=64, output_dim=32)
    >>> images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    >>> method.loss(method.make_views(images))["projections"].shape
    torch.Size([8, 32])
    """

    default_warmup_epochs = 10

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        temperature: float = 1.0,
        momentum: float = 0.99,
        output_dim: int = 256,
        hidden_dim: int = 4096,
        projector_layers: int = 2,
        predictor_norm: bool = False,
        min_scale: float = 0.2,
        mean: Sequence[float] | None = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] | None = IMAGENET_DEFAULT_STD,
        optimizer_name: Literal["lars", "adamw"] = "lars",
        learning_rate: float = 0.6,
        weight_decay: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            encoder,
            mean=mean,
            std=std,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )
        self.temperature = temperature
        self.momentum = momentum
        self.optimizer_name = optimizer_name
        hidden = [hidden_dim] * (projector_layers - 1)
        self.projector = mlp(self.feature_dim, *hidden, output_dim, last_norm="plain")
        self.predictor = mlp(output_dim, hidden_dim, output_dim, last_norm="plain" if predictor_norm else "none")
        self.teacher_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.view_1, self.view_2 = views.moco_v3(self.size, min_scale=min_scale)

    @classmethod
    def vit(cls, encoder: str | nn.Module = "moco_v3_vit_small", **kwargs: Any) -> "MoCoV3":
        """Recipe for transformers: AdamW at 1.5e-4, weight decay 0.1, 40 epochs of warm-up, τ 0.2, a deeper head.

        >>> vit = MoCoV3.vit(size=32, encoder_args={"patch_size": 8, "depth": 1}, hidden_dim=32)
        >>> vit.temperature, vit.encoder.patch_embed.proj.weight.requires_grad
        (0.2, False)
        """
        recipe = {
            "temperature": 0.2,
            "projector_layers": 3,
            "predictor_norm": True,
            "min_scale": 0.08,
            "optimizer_name": "adamw",
            "learning_rate": 1.5e-4,
            "weight_decay": 0.1,
            "warmup_epochs": 40,
        }
        return cls(encoder, **{**recipe, **kwargs})

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and projector, each with its teacher; the predictor has none."""
        return [(self.encoder, self.teacher_encoder), (self.projector, self.teacher_projector)]

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Two views of each image, made by two different recipes (the BYOL pair)."""
        return [self.normalize(view(images, self.generator)) for view in (self.view_1, self.view_2)]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Each view's query against all keys of the other view, those of other ranks included."""
        h = [self.encode(v) for v in views]  # two passes: batch norm sees one view at a time
        z = [self.project(each) for each in h]
        q = [self.predictor(each) for each in z]
        with torch.no_grad():
            k = [self.teacher_projector(pool(self.teacher_encoder(v))) for v in views]
        first, accuracy = info_nce(q[0], k[1], temperature=self.temperature, with_accuracy=True)
        second = info_nce(q[1], k[0], temperature=self.temperature)
        candidates = len(z[0]) * world_size()
        return {
            "loss": 2 * self.temperature * (first + second),
            "features": h[0].detach(),
            "projections": z[0].detach(),
            "pair_accuracy": accuracy,
            "mutual_information": mutual_information_bound((first + second) / 2, candidates),
        }

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """LARS with momentum 0.9, or AdamW."""
        if self.optimizer_name == "adamw":
            return AdamW(groups, lr=lr, weight_decay=self.weight_decay)
        return LARS(groups, lr=lr, weight_decay=self.weight_decay)
