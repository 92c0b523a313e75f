"""SimCLR: two views of an image attract each other and repel all other views of the batch.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
The views carry the method: random crops and strong colour distortion, so that colour histograms alone cannot solve it.
The loss is computed behind a projector that is thrown away: the representation in front of it keeps more.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sslmodules import views
from sslmodules.distributed import world_size
from sslmodules.heads import mlp
from sslmodules.losses import mutual_information_bound, nt_xent
from sslmodules.module import SSLModule
from sslmodules.optim import LARS


class SimCLR(SSLModule):
    """A simple framework for contrastive learning (Chen et al. 2020). Defaults: ImageNet, batch 4,096 (appendix B.6).

    At 32 px the paper (B.9) takes the 3x3 stem (``encoder="resnet50-cifar"``), ``jitter=0.5``, ``blur=0``,
    ``temperature=0.5`` and ``learning_rate=1.0`` at batch 1,024. No mean or std is subtracted, as in the authors' code.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here.
        temperature: τ of the loss.
        output_dim: length of the projections z.
        hidden_dim: width of the projector's hidden layers; None is the encoder's.
        projector_layers: 2, or 3 as in SimCLR v2 (Chen et al. 2020b).
        jitter: strength s of the colour distortion, 1 for ImageNet.
        blur: probability of Gaussian blur.
        min_scale: smallest share of the image's area that a crop covers.
        learning_rate: of LARS, for a batch of 256; scaled in proportion to the global batch.
        weight_decay: of LARS.

    >>> method = SimCLR("conv4", temperature=0.5, jitter=0.5, blur=0)
    >>> images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    >>> sorted(method.loss(method.make_views(images)))
    ['features', 'loss', 'mutual_information', 'pair_accuracy', 'projections']
    """

    default_warmup_epochs = 10

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        temperature: float = 0.1,
        output_dim: int = 128,
        hidden_dim: int | None = None,
        projector_layers: int = 2,
        jitter: float = 1.0,
        blur: float = 0.5,
        min_scale: float = 0.08,
        learning_rate: float = 0.3,
        weight_decay: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.temperature = temperature
        hidden = [hidden_dim or self.feature_dim] * (projector_layers - 1)
        self.projector = mlp(self.feature_dim, *hidden, output_dim, last_norm="scale")
        self.view = views.simclr(self.size, strength=jitter, blur=blur, min_scale=min_scale)

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Two views of each image, (B, C, H, W) each."""
        return [self.normalize(self.view(images, self.generator)) for _ in range(2)]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """NT-Xent over the 2B views of the batch, and those of the other ranks."""
        h = self.encode(torch.cat(views))  # (2B, D): one pass, so that batch norm sees both views
        z = self.project(h)  # (2B, d)
        z1, z2 = z.chunk(2)
        loss, accuracy = nt_xent(z1, z2, self.temperature, with_accuracy=True)
        return {
            "loss": loss,
            "features": h.chunk(2)[0].detach(),
            "projections": z1.detach(),
            "pair_accuracy": accuracy,
            "mutual_information": mutual_information_bound(loss, candidates=len(z) * world_size() - 1),
        }

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """LARS, momentum 0.9."""
        return LARS(groups, lr=lr, weight_decay=self.weight_decay)
