"""Rotation (RotNet): tell by which multiple of 90 degrees an image was turned.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018. To see which
way is up, a network has to find the objects and know how they usually stand. Multiples of 90 degrees are flips and
transposes, so that no trace of resampling gives the answer away.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from sslmodules.module import SSLModule
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop


class Rotation(SSLModule):
    """Rotation prediction (Gidaris et al. 2018). Defaults: ResNet-50 on ImageNet, batch 256 (Kolesnikov et al. 2019).

    On CIFAR-10 the authors take ``learning_rate=0.2`` (0.1 at batch 128), ``weight_decay=5e-4`` and 200 epochs. All
    four turned copies of an image stand in the same batch. A flip after the rotation would make a quarter turn to the
    left one to the right, so images are cropped and flipped before.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here. The stages before
            the last carry over best (``--probe.reads``).
        min_scale: smallest share of the image's area that the crop covers.
        learning_rate: of SGD, for a batch of 256 images (1,024 views); scaled in proportion to the global batch.
        weight_decay: of SGD.

    Raises:
        ValueError: images that are not square, where no ``size`` makes the views square.

    >>> method = Rotation("conv4")
    >>> views = method.make_views(torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8))
    >>> len(views), views[0].shape, sorted(method.loss(views))
    (4, torch.Size([8, 3, 16, 16]), ['features', 'loss', 'rotation_accuracy'])
    """

    specialised = True
    validation_measure = "loss"

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        min_scale: float = 0.08,
        mean: Sequence[float] | None = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] | None = IMAGENET_DEFAULT_STD,
        learning_rate: float = 0.1,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, mean=mean, std=std, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.classifier = nn.Linear(self.feature_dim, 4)
        self.view = RandomResizedCrop(self.size, scale=(min_scale, 1.0), interpolation="bilinear", flip=0.5)

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Four copies of each image, (B, C, H, W) each: turned counter-clockwise by 0, 90, 180 and 270 degrees."""
        upright = self.normalize(self.view(images, self.generator))
        return [upright.rot90(k, (2, 3)) for k in range(4)]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Cross-entropy of the four classes over the 4B views."""
        h = self.encode(torch.cat(views))  # (4B, D)
        logits = self.classifier(h)  # (4B, 4)
        turns = torch.arange(4, device=h.device).repeat_interleave(len(views[0]))  # (4B,)
        return {
            "loss": F.cross_entropy(logits.float(), turns),
            "rotation_accuracy": (logits.argmax(1) == turns).float().mean(),
            "features": h.chunk(4)[0].detach(),
        }

    def check_images(self, images: Tensor) -> None:
        """Refuse what is not square, besides what no method can train on."""
        super().check_images(images)
        if self.size is None and images.shape[2] != images.shape[3]:
            raise ValueError(
                f"the images are {images.shape[2]}x{images.shape[3]} px and a quarter turn needs square ones; pass "
                "size=..., the side of square crops"
            )

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show the four views of each image, then each turned back by the rotation that is predicted for it."""
        views = self._views(images)
        turns = self.classifier(self.encode(torch.cat(views))).argmax(1).view(4, -1)  # (4, B)
        shown = [self.denormalize(view) for view in views]
        back = [
            torch.stack([x.rot90(-k, (1, 2)) for x, k in zip(view, numbers, strict=True)])
            for view, numbers in zip(shown, turns.tolist(), strict=True)
        ]
        right = (turns == torch.arange(4, device=turns.device)[:, None]).T.int()  # (B, 4)
        captions = [*(f"turned by {angle}°" for angle in (0, 90, 180, 270)), *["turned back as predicted"] * 4]
        marks = torch.cat([torch.full_like(right, -1), right], 1)
        return {"turned upright": Tiles(torch.stack([*shown, *back], 1), captions, marks)}

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """SGD, momentum 0.9 (Nesterov)."""
        return SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
