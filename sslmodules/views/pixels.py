"""Operations on single pixels and their order that need no neighbour and no colour."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sslmodules.views.precision import full_precision, per_sample, require, to_float


@full_precision
def solarize(images: Tensor, threshold: Tensor | float = 0.5) -> Tensor:
    """Invert the pixels of each image that are at or above its threshold.

    Args:
        images: (B, C, H, W), any number of channels, uint8 or float in [0, 1].
        threshold: (B,) in [0, 1].

    Returns:
        fp32 (B, C, H, W).

    Example:
        >>> solarize(torch.tensor([0.25, 0.5, 0.75]).view(1, 1, 1, 3)).flatten()
        tensor([0.2500, 0.5000, 0.2500])
    """
    require(threshold, 0, 1, "the threshold")
    return torch.where(images >= per_sample(threshold, images), 1 - images, images)


def _columns(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std as (C, 1, 1) beside the images."""
    both = [torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std)]
    if any(len(values) not in (1, images.shape[1]) for values in both):
        raise ValueError(
            f"mean and std have {len(both[0])} and {len(both[1])} values for images of {images.shape[1]} channels; "
            "pass one a channel, or one for all."
        )
    require(both[1], 1e-12, math.inf, "std")
    return both[0].to(images.device, non_blocking=True), both[1].to(images.device, non_blocking=True)


def normalize(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Return `(images - mean) / std` by channel.

    Args:
        images: (B, C, H, W), uint8 or float in [0, 1].
        mean: One value a channel, or one for all, on the scale of [0, 1].
        std: As the mean, above 0.

    Returns:
        fp32 (B, C, H, W).

    Raises:
        ValueError: For another number of values, or a std that is not above 0.

    Example:
        >>> normalize(torch.ones(1, 1, 1, 1), mean=[0.5], std=[0.25])
        tensor([[[[2.]]]])
    """
    images = to_float(images)
    mean, std = _columns(images, mean, std)
    return (images - mean) / std  # with gradient: the encoder's input is made by this too


def denormalize(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Return `images · std + mean` by channel: what `normalize` with the same values was given.

    Example:
        >>> denormalize(torch.full((1, 1, 1, 1), 2.0), mean=[0.5], std=[0.25])
        tensor([[[[1.]]]])
    """
    images = to_float(images)
    mean, std = _columns(images, mean, std)
    return images * std + mean


@full_precision
def horizontal_flip(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """Mirror images (B, C, H, W) left to right: those that `flip` (B,) bool names, or all.

    Example:
        >>> horizontal_flip(torch.tensor([0.0, 1.0]).expand(2, 1, 1, 2), torch.tensor([True, False])).flatten(1)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if flip is None:
        return images.flip(3)
    return torch.where(flip.to(images.device, non_blocking=True).view(-1, 1, 1, 1), images.flip(3), images)
