"""The operations that the common corruptions are made of, a whole batch at a time.

Where one is another library's, it is that library's to rounding: scipy's Gaussian filter, zoom and interpolation, PIL's
box filter, ImageMagick's motion blur. The matrices and kernels are made on the host in double precision.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.views.precision import full_precision

Border = Literal["nearest", "reflect", "mirror"]
"""What lies outside, as scipy names it: aaa|abcd, cba|abcd or dcb|abcd."""


@lru_cache(maxsize=64)
def gaussian_matrix(side: int, sigma: float, radius: int, border: Border) -> Tensor:
    """Rows of weights that blur an axis of `side` pixels with a Gaussian of 2 · radius + 1 taps.

    Returns:
        fp32 (side, side).

    Example:
        >>> gaussian_matrix(3, 1.0, 1, "nearest")[0]
        tensor([0.7259, 0.2741, 0.0000])
    """
    offset = torch.arange(-radius, radius + 1)
    weight = (-0.5 * (offset.double() / (sigma or 1)).square()).exp()  # (K,)
    source = torch.arange(side)[:, None] + offset  # (side, K)
    if border == "nearest":
        source = source.clamp(0, side - 1)
    else:
        end = 2 * side - (1 if border == "reflect" else 2)  # what lies at the last pixel's other end
        source = source % (end + (border == "reflect"))
        source = source.minimum(end - source)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weight / weight.sum()).expand(side, -1)).float()


@full_precision
def smooth(images: Tensor, sigma: float, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Blur images with one Gaussian: `scipy.ndimage.gaussian_filter` with these arguments.

    Example:
        >>> smooth(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]).expand(1, 1, 5, 5), 0.5)[0, 0, 0]
        tensor([2.6387e-04, 1.0645e-01, 7.8657e-01, 1.0645e-01, 2.6387e-04])
    """
    radius = int(truncate * sigma + 0.5)
    rows, columns = (gaussian_matrix(n, sigma, radius, border).to(images.device) for n in images.shape[2:])
    return rows @ images @ columns.T


@lru_cache(maxsize=64)
def _box_matrix(side: int, size: int) -> Tensor:
    """Rows of weights that resize an axis of `side` pixels to `size` with PIL's BOX filter: fp32 (size, side)."""
    scale = side / size
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = torch.arange(side, dtype=torch.float64) + 0.5 - centre  # (size, side)
    inside = ((distance > -0.5 * max(scale, 1)) & (distance <= 0.5 * max(scale, 1))).double()
    return (inside / inside.sum(1, keepdim=True)).float()


@full_precision
def pixelated(images: Tensor, share: float) -> Tensor:
    """Shrink images to a share of their sides, and enlarge them again, by PIL's BOX filter.

    Example:
        >>> pixelated(torch.tensor([0.0, 1.0, 0.5, 0.5]).expand(1, 1, 4, 4), 0.5)[0, 0, 0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    rows, columns = (
        (_box_matrix(size, n) @ _box_matrix(n, size)).to(images.device)
        for n, size in ((n, max(int(n * share), 1)) for n in images.shape[2:])
    )
    return rows @ images @ columns.T


@lru_cache(maxsize=16)
def disk(radius: float, blur: float) -> Tensor:
    """Kernel of a lens out of focus: a disk, its edge softened by a Gaussian of 3 taps (5 above a radius of 8).

    Returns:
        fp32 (K, K), no larger than its weights.

    Example:
        >>> disk(1.0, 0.01)
        tensor([[0.0000, 0.2000, 0.0000],
                [0.2000, 0.2000, 0.2000],
                [0.0000, 0.2000, 0.0000]])
    """
    reach, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    square = torch.arange(-reach, reach + 1).square()
    inside = (square[:, None] + square <= radius**2).float()
    soft = gaussian_matrix(2 * reach + 1, blur, taps, "mirror")
    kernel = soft @ (inside / inside.sum()) @ soft.T
    edge = int((kernel[reach] > 1e-8).nonzero()[0])
    return kernel[edge : 2 * reach + 1 - edge, edge : 2 * reach + 1 - edge]


@full_precision
def convolved(images: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel with a symmetric kernel (K, K), K odd; the border is mirrored as by OpenCV.

    Example:
        >>> convolved(torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 3, 3), disk(1.0, 0.01))[0, 0, 0]
        tensor([0.0000, 0.2000, 0.6000])
    """
    half = len(kernel) // 2
    padded = F.pad(images, [half] * 4, mode="reflect").flatten(0, 1)[:, None]  # (BC, 1, H + K - 1, W + K - 1)
    return F.conv2d(padded, kernel.to(images.device)[None, None]).view_as(images)


@full_precision
def motion_blur(images: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """Blur each image along its own line, as ImageMagick does: half a Gaussian of whole-pixel steps, one-sided.

    Args:
        images: (B, C, H, W).
        angle: (B,) in degrees, on the host; 0 is to the right, 90 down: where a pixel's colour comes from.
        radius: of the kernel, which has 2 · ceil(radius) + 1 steps.
        sigma: of the Gaussian, in pixels.

    Returns:
        fp32 (B, C, H, W); beyond the border its own pixels are repeated.

    Example:
        >>> image = torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 4)
        >>> motion_blur(image, torch.tensor([0.0]), radius=1, sigma=1.0)
        tensor([[[[0.0777, 0.3482, 0.5741, 0.0000]]]])
    """
    step = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64)
    weight = (-0.5 * (step / sigma).square()).exp()
    weights = (weight / weight.sum()).tolist()
    direction = torch.deg2rad(angle.double())[:, None]  # (B, 1)
    down, right = (
        (step * f(direction) - 0.5).ceil().long().to(images.device) for f in (torch.sin, torch.cos)
    )  # (B, K)
    height, width = images.shape[2:]
    rows, columns = (torch.arange(n, device=images.device) for n in (height, width))
    pixels, out = images.flatten(2), torch.zeros_like(images).flatten(2)  # (B, C, HW)
    for k, w in enumerate(weights):
        row = (rows + down[:, k, None]).clamp(0, height - 1)  # (B, H)
        column = (columns + right[:, k, None]).clamp(0, width - 1)  # (B, W)
        index = (row[:, :, None] * width + column[:, None]).flatten(1)  # (B, HW)
        out.add_(pixels.gather(2, index[:, None].expand_as(pixels)), alpha=w)
    return out.view_as(images)


@full_precision
def zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of images to their size by `scipy.ndimage.zoom` of order 1; the factor is at least 1.

    Example:
        >>> zoomed(torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4), 2.0)[0, 0, 0]
        tensor([0.0000, 0.3333, 0.6667, 1.0000])
    """
    sides = images.shape[2:]
    cut = [math.ceil(n / factor) for n in sides]
    first = [(n - c) // 2 for n, c in zip(sides, cut, strict=True)]
    middle = images[:, :, first[0] : first[0] + cut[0], first[1] : first[1] + cut[1]]
    large = F.interpolate(middle, [round(c * factor) for c in cut], mode="bilinear", align_corners=True)
    top, left = ((m - n) // 2 for m, n in zip(large.shape[2:], sides, strict=True))
    return large[:, :, top : top + sides[0], left : left + sides[1]]


def plasma(noise: Tensor, decay: float) -> Tensor:
    """Clouds: a plasma fractal by the diamond-square algorithm, on a torus.

    Args:
        noise: (B, S, S) in [-1, 1], what is added to each point; S a power of two.
        decay: by which the square root of the noise's strength falls as the grid halves.

    Returns:
        (B, S, S), each from 0 to 1.

    Example:
        >>> plasma(torch.tensor([[[0.0, 0.5], [-0.5, 0.0]]]), decay=2.0)
        tensor([[[0.5000, 1.0000],
                 [0.0000, 0.5000]]])
    """
    heights = torch.zeros_like(noise)
    step, strength = noise.shape[1], 100.0
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        below, beside = corners.roll(-1, 1), corners.roll(-1, 2)
        middles = (corners + below + beside + below.roll(-1, 2)) / 4 + strength**2 * noise[:, half::step, half::step]
        heights[:, half::step, half::step] = middles
        for towards, other, axis in ((beside, (0, half), 1), (below, (half, 0), 2)):  # points between two corners
            top, left = other
            mean = (corners + towards + middles + middles.roll(1, axis)) / 4
            heights[:, top::step, left::step] = mean + strength**2 * noise[:, top::step, left::step]
        step, strength = half, strength / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


@full_precision
def resampled(images: Tensor, rows: Tensor, columns: Tensor, border: Literal["reflect", "mirror"]) -> Tensor:
    """Read images at places of their own, bilinear: `scipy.ndimage.map_coordinates` of order 1.

    Args:
        images: (B, C, H, W).
        rows: (B, h, w) places in pixels, 0 is the middle of the first.
        columns: as rows.
        border: what lies outside, see `Border`.

    Returns:
        fp32 (B, C, h, w).

    Example:
        >>> place = torch.tensor([[[0.0, 1.0, -0.5]]])
        >>> resampled(torch.tensor([[[[4.0, 8.0], [6.0, 10.0]]]]), place, torch.zeros(1, 1, 3), "mirror")
        tensor([[[[4., 6., 5.]]]])
    """
    aligned = border == "mirror"  # about the middles of the outermost pixels, and not about their edges
    both = [
        2 * place / (n - 1) - 1 if aligned else (2 * place + 1) / n - 1
        for place, n in ((columns, images.shape[3]), (rows, images.shape[2]))
    ]
    return F.grid_sample(images, torch.stack(both, 3), padding_mode="reflection", align_corners=aligned)


@lru_cache(maxsize=8)
def _poisson_table(rate: float) -> Tensor:
    """Of each grey level g, the distribution function of a Poisson number of mean rate · g / 255: fp64 (256, K)."""
    most = math.ceil(rate + 10 * math.sqrt(rate) + 10)
    mean = torch.arange(256, dtype=torch.float64)[:, None] / 255 * rate
    return torch.special.gammaincc(torch.arange(1.0, most + 1, dtype=torch.float64), mean)


@full_precision
def photons(images: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Number of photons counted where `rate` of them are white: Poisson numbers of mean rate · x, exact.

    Args:
        images: (B, C, H, W); their values are rounded to 256 levels.
        uniform: as the images, in [0, 1): which quantile each number is.
        rate: mean of a white pixel.

    Returns:
        fp32 (B, C, H, W), whole numbers.

    Example:
        >>> photons(torch.full((1, 1, 1, 3), 1.0), torch.tensor([[[[0.01, 0.5, 0.99]]]]), rate=9)
        tensor([[[[ 3.,  9., 17.]]]])
    """
    table = _poisson_table(rate).to(images.device)
    level = (images * 255).round().clamp(0, 255)
    # All levels' functions one above the other, so that one search serves every pixel.
    ladder = (table + torch.arange(256, device=images.device)[:, None]).flatten()
    place = torch.searchsorted(ladder, uniform.double() + level)
    return (place - level.long() * table.shape[1]).float()


def copied_neighbours(offsets: Tensor, height: int, width: int, distance: int) -> Tensor:
    """Where each pixel behind frosted glass comes from: pixel by pixel, from the end, each takes a neighbour's colour.

    Args:
        offsets: (T, B, 2) whole numbers from -distance to distance - 1: down and right, for T steps. There is one for
            each pixel that is at least `distance` away from the border, or a multiple of that.
        height: of the images.
        width: of the images.
        distance: in pixels.

    Returns:
        (B, H · W), the number of the pixel that each is a copy of.
    """
    b = offsets.shape[1]
    inner = np.add.outer(np.arange(height - distance, distance, -1) * width, np.arange(width - distance, distance, -1))
    targets = np.resize(inner.ravel(), len(offsets))  # (T,)
    away = offsets.numpy().astype(np.int64) @ [width, 1]  # (T, B)
    index, sample = np.repeat(np.arange(height * width)[:, None], b, 1), np.arange(b)
    for target, source in zip(targets.tolist(), targets[:, None] + away, strict=True):
        index[target] = index[source, sample]
    return torch.from_numpy(index).T
