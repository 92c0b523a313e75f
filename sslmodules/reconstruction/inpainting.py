"""Inpainting (context encoders): fill the hole in an image from what surrounds it.

Pathak, Krähenbühl, Donahue, Darrell, Efros, "Context Encoders: Feature Learning by Inpainting", CVPR 2016. To fill a
hole of a quarter of the image, a network has to know what stands there and how such things look. An adversary makes the
fills sharp; the features that the paper evaluates were learned by reconstruction alone.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from sslmodules.encoders import map_shape
from sslmodules.module import SSLModule
from sslmodules.optim import parameter_groups
from sslmodules.reconstruction.decoder import Decoder
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop
from sslmodules.views.masks import center_mask, overlap_weights, random_blocks_mask, random_region_mask

# Of visible pixels that are to be predicted too: the authors weigh the overlap 10-fold.
OVERLAP_WEIGHT = 10.0


class Inpainting(SSLModule):
    """Context encoder (Pathak et al. 2016). Defaults: 128 px, the hole in the middle, batch 64, reconstruction alone.

    The authors crop 128 px from images of 350, keep Adam's rate (``milestones=()``) and train for 500 epochs. Their
    encoder is AlexNet up to pool5 for features, and a stack of 4x4 convolutions of stride 2 for pictures.

    With ``adversarial=True`` the loss is 0.999 L_rec + 0.001 L_adv of the filling network, plus the discriminator's
    own. Both are one sum for one optimizer, whose gradients nevertheless stay apart: the discriminator sees fills
    without their gradient, and the fills are judged by a discriminator whose parameters have none. Both gradients are
    taken before either network moves. ``gradient_clip_val`` limits the norm of both together.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here. The stages before
            the last carry over best (``--probe.reads``).
        size: side of the views in pixels. The bottleneck belongs to this size.
        mask: ``"center"``, ``"blocks"`` or ``"region"``; see :mod:`sslmodules.views.masks`. The random shapes keep
            the network from learning what the edge of one hole looks like, and are better for features (section 3.3).
        hole: side of the central hole, as a share of ``size``.
        overlap: width in pixels of the band around what is hidden that is visible and is to be predicted too, with
            10-fold weight; the central hole shrinks by it. None is 4 at 128 px for the centre, in proportion, and 0
            for other masks.
        loss_on: ``"hole"``, the paper's equation: pixels under the mask, and the band. ``"image"``, the authors' code
            for random regions: all pixels, where visible ones count as band if there is an overlap, 10-fold, and
            once if there is none.
        adversarial: whether a discriminator judges the fills.
        adversarial_weight: of L_adv; that of L_rec is the rest to 1.
        discriminator_rate: learning rate of the discriminator, as a share of ``learning_rate``.
        width: channels between encoder and decoder; see :class:`Decoder`.
        min_scale: smallest share of the image's area that a crop covers; 0.13 is the authors' (128/350)².
        mean: per-channel mean of the encoder's input, and so the colour that covers the hole; (0.5,) with std (0.5,)
            is [-1, 1]. What is predicted is in [-1, 1] whatever the mean.
        std: per-channel standard deviation that it is divided by.
        learning_rate: of Adam, as it is: not scaled by the batch size.

    Raises:
        ValueError: an unknown mask or loss_on, a hole that hides nothing or everything, or a weight or an overlap out
            of its range.

    >>> method = Inpainting("conv4", size=16, width=32)
    >>> views = method.make_views(torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8))
    >>> [v.shape for v in views], sorted(method.loss(views))
    ([torch.Size([4, 3, 16, 16]), torch.Size([4, 1, 16, 16])], ['loss', 'reconstruction'])
    """

    lr_batch_size = None
    reads_map = True
    specialised = True
    validation_measure = "reconstruction"  # the loss also holds the discriminator's

    size: int
    discriminator: nn.Module | None

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        size: int = 128,
        mask: Literal["center", "blocks", "region"] = "center",
        hole: float = 0.5,
        overlap: int | None = None,
        loss_on: Literal["hole", "image"] = "hole",
        adversarial: bool = False,
        adversarial_weight: float = 0.001,
        discriminator_rate: float = 0.1,
        width: int = 256,
        min_scale: float = 0.13,
        mean: Sequence[float] | None = (0.5,),
        std: Sequence[float] | None = (0.5,),
        learning_rate: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, size=size, mean=mean, std=std, learning_rate=learning_rate, **kwargs)
        if mask not in ("center", "blocks", "region") or loss_on not in ("hole", "image"):
            raise ValueError(
                f"mask is {mask!r} and loss_on {loss_on!r}; expected 'center', 'blocks' or 'region', and 'hole' or "
                "'image'"
            )
        if not 0 <= adversarial_weight <= 1 or (overlap or 0) < 0:
            raise ValueError(
                f"adversarial_weight is {adversarial_weight} and overlap {overlap}; expected 0 to 1, a share of the "
                "loss, and at least 0 px"
            )
        self.mask = mask
        self.hole = hole
        self.overlap = (size // 32 if mask == "center" else 0) if overlap is None else overlap
        self.loss_on = loss_on
        self.adversarial_weight = adversarial_weight
        self.discriminator_rate = discriminator_rate
        self.view = RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation="bilinear", flip=0.5)
        if mask == "center":
            center_mask(1, size, size, hole, self.overlap)  # raises here and not at the first batch

        d, h, w = map_shape(self.encoder, self.encoder_channels or self.in_channels, size)
        self.bottleneck = nn.Sequential(
            ChannelwiseLinear(d, h * w),
            nn.Conv2d(d, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.decoder = Decoder(width, self.in_channels, size / h, width)
        self.discriminator = discriminator(self.in_channels, size) if adversarial else None

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Crops in [-1, 1], (B, C, S, S), and a mask for each, (B, 1, S, S): 1 where it is hidden, 0 elsewhere."""
        crops = self.view(images, self.generator) * 2 - 1
        b, s = len(crops), self.size
        if self.mask == "center":
            mask = center_mask(b, s, s, self.hole, self.overlap)
        elif self.mask == "blocks":
            mask = random_blocks_mask(b, s, s, generator=self.generator)
        else:
            mask = random_region_mask(b, s, s, self.generator)
        return [crops, mask.to(crops.device, non_blocking=True).to(crops.dtype)]

    def hide(self, target: Tensor, mask: Tensor) -> Tensor:
        """What the encoder sees of [-1, 1] images: normalised, and 0 under the mask: the mean, or black without one."""
        return self.normalize((target + 1) / 2).to(target.dtype) * (1 - mask)

    def fill(self, hidden: Tensor) -> Tensor:
        """Predict whole images in [-1, 1] from what :meth:`hide` gives: (B, C, S, S) both."""
        code = self.bottleneck(self.encode_map(hidden))  # (B, width, h, w)
        return torch.tanh(self.decoder(code, hidden.shape[-2:]).to(hidden.dtype))

    def weights(self, mask: Tensor) -> Tensor:
        """Weight of each pixel in L_rec, (B, 1, S, S)."""
        if self.loss_on == "hole":
            return overlap_weights(mask, self.overlap, OVERLAP_WEIGHT)
        return mask + (OVERLAP_WEIGHT if self.overlap else 1.0) * (1 - mask)

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """L_rec, the weighted squared error: a mean over the pixels of each image, then over images; and L_adv.

        Without features: the encoder saw images with holes.
        """
        target, mask = views
        fill = self.fill(self.hide(target, mask))
        weight = self.weights(mask)
        error = (weight * (fill - target).square().mean(1, keepdim=True)).sum((1, 2, 3))  # (B,)
        reconstruction = (error / weight.sum((1, 2, 3)).clamp(min=1)).mean()
        if self.discriminator is None:
            return {"loss": reconstruction, "reconstruction": reconstruction.detach()}
        generator, adversary, accuracy = self._adversarial(mask * target, mask * fill)
        share = self.adversarial_weight
        return {
            "loss": (1 - share) * reconstruction + share * generator + adversary,
            "reconstruction": reconstruction.detach(),
            "generator": generator.detach(),
            "discriminator": adversary.detach(),
            "discriminator_accuracy": accuracy,
        }

    def _adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of generator and discriminator, and the latter's accuracy, on the holes' contents alone.

        Real and filled holes make batches of their own, as in the authors' code: batch norm would show the one to the
        other. The generator's pass sees neither the parameters' gradients nor the running statistics, which have been
        updated by the same fills already: both would be the discriminator's.
        """
        judge: Any = self.discriminator
        fixed = {name: p.detach() for name, p in judge.named_parameters()}
        fixed |= {name: b.clone() for name, b in judge.named_buffers()}
        right = judge(real).to(real.dtype)  # (B,) logits
        wrong = judge(fake.detach()).to(real.dtype)
        fooled = functional_call(judge, fixed, (fake,)).to(real.dtype)
        generator = F.softplus(-fooled).mean()  # -log D(F), which does not saturate where the fills are seen through
        adversary = F.softplus(-right).mean() + F.softplus(wrong).mean()  # -log D(x) - log(1 - D(F))
        accuracy = ((right > 0).float().mean() + (wrong < 0).float().mean()) / 2
        return generator, adversary, accuracy

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two sets of groups: the filling network's, and at a rate of its own the discriminator's."""
        if self.discriminator is None:
            return super().parameter_groups()
        filling = (child for child in self.children() if child is not self.discriminator)
        judging = parameter_groups(self.discriminator)
        return parameter_groups(*filling) + [{**group, "lr_scale": self.discriminator_rate} for group in judging]

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """Adam, β₁ = 0.5."""
        return Adam(groups, lr=lr, betas=(0.5, 0.999), weight_decay=self.weight_decay)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show what the encoder sees, the hole filled by the prediction, and the truth."""
        target, mask = self._views(images)
        hidden = self.hide(target, mask)
        filled = torch.where(mask > 0, self.fill(hidden), target)
        shown = torch.stack([self.denormalize(hidden), (filled + 1) / 2, (target + 1) / 2], 1)
        return {"inpainting": Tiles(shown, ["with a hole", "the hole filled", "image"])}


class ChannelwiseLinear(nn.Module):
    """A fully connected layer for each channel of a map, between its positions (section 3.1 of the paper).

    m channels of n x n positions have m·n⁴ weights, where one layer for all would have m²·n⁴.

    Args:
        channels: m.
        positions: n², of the map.

    Raises:
        RuntimeError: when called with a map of another shape.

    >>> ChannelwiseLinear(256, 6 * 6).weight.numel()
    331776
    """

    def __init__(self, channels: int, positions: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(positions)  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(channels, positions, positions).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels * positions).uniform_(-bound, bound))  # 1-D: without weight decay

    def forward(self, x: Tensor) -> Tensor:
        """(B, m, n, n) to (B, m, n, n)."""
        out = torch.einsum("bcp,cqp->bcq", x.flatten(2), self.weight)
        return (out + self.bias.view(self.weight.shape[:2])).view_as(x)


def discriminator(channels: int, size: int, width: int = 64) -> nn.Sequential:
    """Logits (B,) of images (B, channels, size, size) being real.

    The paper's 4x4 convolutions of stride 2 with 64, 128, 256, 512 channels at 64 px, down to 4 px, and one that reads
    all of that; as in the authors' code another 64 at 128 px, and fewer on smaller images. No convolution has a bias,
    which comes to the same as zeroing it every step. Without the sigmoid, which the loss has.

    >>> discriminator(3, 64)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2])
    """
    halvings = max(1, int(math.log2(size / 4)))
    layers: list[nn.Module] = []
    for i in range(halvings):
        out = width * 2 ** max(0, i - max(0, halvings - 4))
        layers.append(nn.Conv2d(channels, out, 4, stride=2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(out)] if i > 0 else []
        layers.append(nn.LeakyReLU(0.2, inplace=True))
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, size // 2**halvings, bias=False), nn.Flatten(0))
