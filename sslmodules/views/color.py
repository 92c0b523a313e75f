"""Colour operations on a batch, each sample with its own factor. torchvision's on float images, sample by sample.

None is a matrix product, so that neither bf16 autocast nor TF32 can round the colours.
"""

import math
import warnings
from functools import lru_cache

import torch
from torch import Tensor

from sslmodules.views.precision import full_precision, per_sample, require


def require_color(images: Tensor, what: str) -> None:
    """Refuse images that have neither one channel nor three.

    Raises:
        ValueError: With what was found.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"{what} got images of {images.shape[1]} channels; expected 3 (RGB) or 1.")


def has_colors(images: Tensor) -> bool:
    """Return whether images are RGB, or grey, which colour operations leave as they are; other channels are warned of.

    Once for each number of channels, however many views leave something out.
    """
    if images.shape[1] in (1, 3):
        return True
    _warn_of(images.shape[1])
    return False


@lru_cache
def _warn_of(channels: int) -> None:
    warnings.warn(
        f"views of {channels} channels: saturation, hue and grayscale, which need RGB, are left out",
        stacklevel=2,
    )


def _luma(images: Tensor) -> Tensor:
    """Return the grey image (B, 1, H, W): ITU-R 601 weights for RGB, otherwise the mean over the channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def _mean(plane: Tensor) -> Tensor:
    """Return the mean of each (B, 1, H, W) plane as (B, 1, 1, 1)."""
    # By rows first: a mean in one go is summed in another order for a batch of one than for that sample among others.
    return plane.mean(3, keepdim=True).mean(2, keepdim=True)


def blend_(images: Tensor, factor: Tensor, to_luma: Tensor, to_mean: Tensor) -> Tensor:
    """Set images to `clamp(factor · x + to_luma · grey(x) + to_mean · mean(grey(x)))`, in place.

    Brightness (f, 0, 0), saturation (f, 1 - f, 0) and contrast (f, 0, 1 - f) are all of this form, so one step serves a
    batch in which each sample is due for another of the three.

    Args:
        images: fp32 (B, C, H, W), overwritten.
        factor: (B, 1, 1, 1), as the others.
        to_luma: Weight of the grey image.
        to_mean: Weight of the grey image's mean.
    """
    luma = _luma(images)  # (B, 1, H, W)
    offset = torch.addcmul(_mean(luma) * to_mean, luma, to_luma)
    return images.mul_(factor).add_(offset).clamp_(0, 1)


def blend_one_(images: Tensor, factor: float, to_luma: float, to_mean: float) -> Tensor:
    """Do what `blend_` does, for samples due for the same blend, without the steps that have no weight."""
    if to_luma or to_mean:
        luma = _luma(images)
        # blend_'s arithmetic, so that both round alike; `images` must not change before `luma` has been taken.
        offset = luma * to_luma if to_luma else _mean(luma) * to_mean
        return images.mul_(factor).add_(offset).clamp_(0, 1)
    return images.mul_(factor).clamp_(0, 1)


def rotate_hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of RGB images by `turns` (B, 1, 1) in [-0.5, 0.5], in place: `adjust_hue` for three channels.

    HSV without leaving RGB. With value V (the largest channel), chroma C (largest less smallest) and hue h in sixths of
    a turn, a channel is `V - C · clamp(2 - d, 0, 1)`, where d is the distance around the circle from h to the hue
    opposite to the channel (3, cyan, for red; 5 for green; 1 for blue).
    """
    red, green, blue = images.unbind(1)  # (B, H, W) each, as everything below
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    chroma = torch.minimum(red, green)
    torch.minimum(chroma, blue, out=chroma)
    torch.sub(value, chroma, out=chroma)
    # The hue, times the chroma, by the largest channel. Signs and lerps by exactly 0 or 1 choose; comparing and `where`
    # would say the same at several times the cost.
    not_red, not_green = (value - red).sign_(), (value - green).sign_()
    if_green, if_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    hue = torch.lerp(green - blue, torch.lerp(if_green, if_blue, not_green), not_red)
    hue.div_(chroma.clamp(min=torch.finfo(torch.float32).tiny))  # in [-1, 5]; grey: any will do, its chroma is 0
    lowest = torch.sub(value, chroma, alpha=2)
    for channel, opposite in ((red, 3), (green, 5), (blue, 1)):
        # Turned so that the difference to the opposite hue lies in [-3, 9]; there d is |3 - |difference - 3||.
        shift = (6 * turns - (opposite - 2)).remainder_(6).sub_(2 + 3)  # (B, 1, 1)
        distance = (hue + shift).abs_().sub_(3).abs_()
        torch.addcmul(lowest, chroma, distance.clamp_(1, 2), out=channel)
    return images


@full_precision
def adjust_brightness(images: Tensor, factor: Tensor | float) -> Tensor:
    """Multiply each image by its factor, clamped to [0, 1].

    Args:
        images: (B, C, H, W), any number of channels, uint8 or float in [0, 1].
        factor: (B,), not negative; 1 changes nothing.

    Returns:
        fp32 (B, C, H, W).

    Example:
        >>> adjust_brightness(torch.full((2, 3, 1, 1), 0.4), torch.tensor([0.5, 2.0])).flatten(1)
        tensor([[0.2000, 0.2000, 0.2000],
                [0.8000, 0.8000, 0.8000]])
    """
    require(factor, 0, math.inf, "the brightness factor")
    return (images * per_sample(factor, images)).clamp_(0, 1)


@full_precision
def adjust_contrast(images: Tensor, factor: Tensor | float) -> Tensor:
    """Move each image away from its mean grey (factor above 1) or towards it (below), clamped to [0, 1].

    Args:
        images: (B, C, H, W). Grey is torchvision's for 1 and 3 channels, and the mean over the channels for others.
        factor: (B,), not negative; 1 changes nothing.

    Returns:
        fp32 (B, C, H, W).

    Example:
        >>> adjust_contrast(torch.tensor([0.4, 0.6]).view(1, 1, 1, 2), torch.tensor([2.0]))
        tensor([[[[0.3000, 0.7000]]]])
    """
    require(factor, 0, math.inf, "the contrast factor")
    factor = per_sample(factor, images)
    return (images * factor).add_((1 - factor) * _mean(_luma(images))).clamp_(0, 1)


@full_precision
def adjust_saturation(images: Tensor, factor: Tensor | float) -> Tensor:
    """Move each image away from its grey image (factor above 1) or towards it (below), clamped to [0, 1].

    Args:
        images: (B, 3, H, W), or (B, 1, H, W), which comes back unchanged.
        factor: (B,), not negative; 0 is grey, 1 changes nothing.

    Returns:
        fp32 (B, C, H, W).

    Raises:
        ValueError: For another number of channels.

    Example:
        >>> adjust_saturation(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([0.0])).flatten()
        tensor([0.2989, 0.2989, 0.2989])
    """
    require_color(images, "adjust_saturation")
    require(factor, 0, math.inf, "the saturation factor")
    if images.shape[1] == 1:
        return images
    factor = per_sample(factor, images)
    return (images * factor).add_(_luma(images).mul_(1 - factor)).clamp_(0, 1)


@full_precision
def adjust_hue(images: Tensor, factor: Tensor | float) -> Tensor:
    """Rotate the hue of each image by a fraction of a turn.

    Args:
        images: (B, 3, H, W), or (B, 1, H, W), which comes back unchanged.
        factor: (B,) in [-0.5, 0.5]; 0 changes nothing.

    Returns:
        fp32 (B, C, H, W).

    Raises:
        ValueError: For another number of channels.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> adjust_hue(red, torch.tensor([1 / 3])).flatten().round()
        tensor([0., 1., 0.])
    """
    require_color(images, "adjust_hue")
    require(factor, -0.5, 0.5, "the hue factor")
    return images if images.shape[1] == 1 else rotate_hue_(images.clone(), per_sample(factor, images)[:, 0])


@full_precision
def grayscale(images: Tensor) -> Tensor:
    """Return the grey image in every channel: (B, 3, H, W), or (B, 1, H, W), which comes back unchanged.

    Raises:
        ValueError: For another number of channels.

    Example:
        >>> grayscale(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).flatten()
        tensor([0.2989, 0.2989, 0.2989])
    """
    require_color(images, "grayscale")
    return images if images.shape[1] == 1 else _luma(images).repeat(1, 3, 1, 1)
