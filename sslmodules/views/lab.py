"""Between RGB and CIE L*a*b*: lightness L, and colour as (a, b), green to red and blue to yellow.

sRGB primaries, white D65 (2 degrees), with the constants of scikit-image, OpenCV's float images and the authors' Caffe
layers. The 3x3 matrices are written as sums of channels: neither bf16 autocast nor TF32 can round the colours then.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.precision import in_full_precision
from sslmodules.views.precision import to_float

XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
RGB_FROM_XYZ = (
    (3.240481343200526, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.04155592655829284),
    (0.05564663913517716, -0.20404133836651123, 1.0573110696453443),
)
WHITE = (0.95047, 1.0, 1.08883)
STRIP = (
    256  # rows that are computed at a time, because a photograph of 50 megapixels takes 600 MB for each intermediate
)


@in_full_precision
def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB images to L*a*b*; equal to scikit-image's ``rgb2lab`` within 1e-3. Gradients are finite everywhere.

    Floats outside [0, 1] are not noticed, since looking would wait for the device: pixels up to 255 as floats give
    colours that do not exist.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].

    Returns:
        fp32 (B, 3, H, W): L in [0, 100], a in [-86.2, 98.2], b in [-107.9, 94.5].

    Raises:
        ValueError: for another number of channels, or integers that are not uint8.

    Example:
        >>> red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> rgb_to_lab(red).flatten()
        tensor([53.2406, 80.0923, 67.2027])
    """
    linear = _linear(images)
    x, y, z = (_cube_root(_sum(row, linear) / white) for row, white in zip(XYZ_FROM_RGB, WHITE, strict=True))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@in_full_precision
def lightness(images: Tensor) -> Tensor:
    """Return L of :func:`rgb_to_lab` alone, for half the work: fp32 (B, 1, H, W) in [0, 100].

    Example:
        >>> lightness(torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)).flatten()
        tensor([  0.0000,  53.3890, 100.0000])
    """
    return (116 * _cube_root(_sum(XYZ_FROM_RGB[1], _linear(images))) - 16).unsqueeze(1)


@in_full_precision
def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert L*a*b* to sRGB; colours that sRGB does not have are clamped, channel by channel.

    Args:
        lab: (B, 3, H, W), as :func:`rgb_to_lab` gives it.

    Returns:
        fp32 (B, 3, H, W) in [0, 1]. Gradients are finite everywhere, and 0 where a channel was clamped.

    Raises:
        ValueError: for another number of channels.

    Example:
        >>> lab_to_rgb(torch.tensor([50.0, 0.0, 0.0]).view(1, 3, 1, 1)).flatten()
        tensor([0.4663, 0.4663, 0.4663])
    """
    _require_three(lab, "L, a, b")
    l, a, b = lab.float().unbind(1)  # noqa: E741
    y = (l + 16) / 116
    roots = (y + a / 500, y, y - b / 200)
    xyz = [_cube(root) * white for root, white in zip(roots, WHITE, strict=True)]
    linear = torch.stack([_sum(row, xyz) for row in RGB_FROM_XYZ], 1).clamp(0, 1)
    # Both branches of a `where` send their gradient back, so the power is kept away from 0, where it has none.
    bright = 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, bright, 12.92 * linear).clamp(0, 1)


def with_colors(images: Tensor, ab: Tensor) -> Tensor:
    """Return images with their own lightness and other colors, which are enlarged to the size of the images.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        ab: a and b, (B, 2, h, w) in units of L*a*b*.

    Returns:
        fp32 (B, 3, H, W) in [0, 1]; colors that sRGB does not have at that lightness are clamped.

    Example:
        >>> gray = torch.full((1, 3, 4, 6), 0.5)
        >>> rgb_to_lab(with_colors(gray, torch.full((1, 2, 1, 1), 20.0)))[0, :, 0, 0].round()
        tensor([53., 20., 20.])
    """
    ab = F.interpolate(ab.float(), images.shape[-2:], mode="bilinear", align_corners=False)
    out = torch.empty(images.shape, device=images.device)
    for top in range(0, images.shape[2], STRIP):
        rows = slice(top, top + STRIP)
        out[:, :, rows] = lab_to_rgb(torch.cat([lightness(images[:, :, rows]), ab[:, :, rows]], 1))
    return out


def _require_three(images: Tensor, what: str) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"got the shape {tuple(images.shape)}; expected three channels {what}, (B, 3, H, W)")


def _linear(images: Tensor) -> tuple[Tensor, ...]:
    """Return the intensities of red, green and blue light, (B, H, W) each in [0, 1], without sRGB's gamma."""
    _require_three(images, "of RGB")
    rgb = to_float(images)
    bright = ((rgb.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(rgb > 0.04045, bright, rgb / 12.92).unbind(1)


def _sum(row: tuple[float, float, float], channels: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return row[0] * channels[0] + row[1] * channels[1] + row[2] * channels[2]


def _cube_root(t: Tensor) -> Tensor:
    """Return the cube root, continued by its tangent below 0.008856, where the root's slope runs to infinity."""
    return torch.where(t > 0.008856, t.clamp(min=0.008856).pow(1 / 3), 7.787 * t + 16 / 116)


def _cube(t: Tensor) -> Tensor:
    return torch.where(t > 0.2068966, t * t * t, (t - 16 / 116) / 7.787)
