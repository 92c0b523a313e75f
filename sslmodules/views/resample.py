"""Crops, resizes and blurs of a batch, each sample its own.

A separable linear filter makes each row of the result a weighted sum of a few rows of the image, and then the same for
columns. In matrices, `out = Wy x Wxᵀ`; but a row of `Wy` has only K entries that are not zero (4 for bicubic
enlarging, the kernel size for a blur), so the sums are written as sums of K rows. On a processor that is many times
faster than dense products, and since no matrix product is left, neither bf16 autocast nor TF32 can touch the result.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.views.precision import full_precision, per_sample, require

Interpolation = Literal["bilinear", "bicubic"]

# Standard deviations beyond which a Gaussian's weights, below 2e-8, count as 0: narrow kernels are computed as such.
REACH = 6.0


def _sum_rows(images: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Return `out[b, c, i] = Σ_k weight[b, i, k] · images[b, c, index[b, i, k]]`: (B, C, H, W) -> (B, C, h, W)."""
    b, c, height, width = images.shape
    taps = index.shape[-1]
    first = torch.arange(0, b * c * height, height, dtype=torch.int32, device=images.device).view(b, c, 1, 1)
    rows = (first + index[:, None]).view(-1, taps)  # (B C h, K), into the rows of all planes
    weights = weight[:, None].expand(b, c, -1, taps).reshape(-1, taps).contiguous()  # (B C h, K)
    planes = images.contiguous().view(-1, width)  # (B C H, W)
    return F.embedding_bag(rows, planes, mode="sum", per_sample_weights=weights).view(b, c, -1, width)


def _sum_rows_and_columns(images: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Apply one filter down the rows and one along the columns: (B, C, H, W) -> (B, C, h, w)."""
    images = _sum_rows(images, *rows)  # (B, C, h, W)
    images = _sum_rows(images.transpose(2, 3), *columns)  # (B, C, w, h)
    return images.transpose(2, 3).contiguous()


def _kernel_(x: Tensor, interpolation: Interpolation) -> Tensor:
    """Return the triangle filter, or Keys' cubic with a = -1/2 (what PIL and torch's antialiased resizing use)."""
    if interpolation == "bilinear":
        return x.abs_().neg_().add_(1).clamp_(min=0)
    # With p = max(2 - |x|, 0) and q = max(1 - |x|, 0): p² (p - 1) / 2 is the outer piece, to which the inner adds
    # q² (1 - 2 q).
    p = x.abs_().neg_().add_(2).clamp_(min=0)
    q = p - 1
    outer = p.square_().mul_(q)
    q.clamp_(min=0)
    return (q * q).mul_(1 - 2 * q).add_(outer, alpha=0.5)


def _resize_taps(
    first: Tensor, length: Tensor, reverse: Tensor, side: int, size: int, interpolation: Interpolation, longest: int
) -> tuple[Tensor, Tensor]:
    """Return which pixels of one axis make each output pixel, and their weights: (B, size, K) both.

    `first` and `length` (B,) are each sample's stretch, at most `longest`, of an axis of `side` pixels; where `reverse`
    (B,), the output is mirrored. The steps are those of torch's antialiased interpolation in fp32: both round alike.
    """
    radius = 1.0 if interpolation == "bilinear" else 2.0
    taps = 2 * math.ceil(radius * max(longest / size, 1.0)) + 1
    out = torch.arange(0.5, size, device=first.device)  # (size,), the middles of the output's pixels
    out = torch.where(reverse[:, None], size - out, out)  # (B, size): a mirrored crop costs nothing
    length = length[:, None].to(torch.float32)  # (B, 1)
    scale = length / size
    stretch = scale.clamp(min=1)  # shrinking widens the filter, enlarging leaves it
    centre = scale * out
    low = torch.sub(centre, stretch, alpha=radius).add_(0.5).clamp_(min=0).floor_()  # (B, size)
    high = torch.add(centre, stretch, alpha=radius).add_(0.5).floor_().minimum(length)
    tap = torch.arange(taps, dtype=torch.float32, device=first.device)
    x = (tap + (low - centre)[..., None]).add_(0.5).div_(stretch[..., None])  # (B, size, K)
    weight = _kernel_(x, interpolation).mul_(tap < (high - low)[..., None])  # nothing from outside the box
    weight /= weight.sum(-1, keepdim=True)
    index = (low.add_(first[:, None])[..., None] + tap).clamp_(max=side - 1)
    return index.to(torch.int32), weight


@full_precision
def resized_crop(
    images: Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    flip: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Cut a box out of each image, resize it with antialiasing, and mirror it where asked.

    Equal to torchvision's `resized_crop(..., antialias=True)` on float images, sample by sample, within 1e-5. Bicubic
    weights are partly negative: the result may leave [0, 1] by a few hundredths, as torchvision's does.

    Args:
        images: (B, C, H, W), uint8 or float in [0, 1].
        boxes: (B, 4) integers: top, left, height, width of each sample's box, inside the image.
        size: Height and width of the result; one number for both.
        flip: (B,) bool, the samples to mirror left to right. Mirroring the crop comes for free.
        interpolation: `"bilinear"` or `"bicubic"`.

    Returns:
        fp32 (B, C, *size).

    Raises:
        ValueError: For another interpolation, boxes of another shape, or (where they are on the host) boxes outside.

    Example:
        >>> images = torch.arange(8.0).view(1, 1, 2, 4) / 8
        >>> resized_crop(images, torch.tensor([[0, 1, 2, 2]]), size=2, flip=torch.tensor([True])) * 8
        tensor([[[[2., 1.],
                  [6., 5.]]]])
    """
    b, _, height, width = images.shape
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation is {interpolation!r}; expected 'bilinear' or 'bicubic'.")
    if boxes.shape != (b, 4):
        raise ValueError(f"boxes have the shape {tuple(boxes.shape)}; expected (top, left, height, width), ({b}, 4).")
    longest = max(height, width)
    if boxes.device.type == "cpu" and b:  # elsewhere, looking would wait for the device
        longest = int(boxes[:, 2:].max())
        end = boxes[:, :2] + boxes[:, 2:]
        lowest, greatest = boxes.amin(0).tolist(), end.amax(0).tolist()
        if min(lowest[:2]) < 0 or min(lowest[2:]) < 1 or greatest[0] > height or greatest[1] > width:
            raise ValueError(f"boxes reach beyond the images of {height} x {width}, or are empty.")
    size_y, size_x = (size, size) if isinstance(size, int) else size
    boxes = boxes.to(images.device, torch.int32, non_blocking=True)
    first, length = boxes.t().reshape(2, 2, b).unbind()  # (2, B) each: of rows, of columns
    reverse = torch.zeros(2, b, dtype=torch.bool, device=images.device)
    if flip is not None:
        reverse[1] = flip.to(images.device, non_blocking=True)
    if (height, size_y) == (width, size_x):  # the axes differ in their numbers only: all at once
        taps = _resize_taps(
            first.flatten(), length.flatten(), reverse.flatten(), height, size_y, interpolation, longest
        )
        (row, column), (row_weight, column_weight) = (values.chunk(2) for values in taps)
        return _sum_rows_and_columns(images, (row, row_weight), (column, column_weight))
    rows = _resize_taps(first[0], length[0], reverse[0], height, size_y, interpolation, longest)
    columns = _resize_taps(first[1], length[1], reverse[1], width, size_x, interpolation, longest)
    return _sum_rows_and_columns(images, rows, columns)


def center_square(images: Tensor, size: int) -> Tensor:
    """The central square of images (B, C, H, W), uint8 or float in [0, 1], resized: fp32 (B, C, size, size).

    Example:
        >>> center_square(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3), 1).item()
        0.5
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    box = torch.tensor([(height - side) // 2, (width - side) // 2, side, side])
    return resized_crop(images, box.expand(len(images), 4), size)


def _blur_taps(kernel: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the pixels around each pixel, mirrored at the border, and their weights: (B, side, K) both."""
    b, taps = kernel.shape
    around = torch.arange(taps, dtype=torch.int32, device=kernel.device) - taps // 2
    index = (torch.arange(side, dtype=torch.int32, device=kernel.device)[:, None] + around).abs_()  # (side, K)
    index = side - 1 - (side - 1 - index).abs_()  # reflect: the border's own pixel is not repeated
    return index.expand(b, -1, -1), kernel[:, None].expand(-1, side, -1)


@full_precision
def gaussian_blur(images: Tensor, sigma: Tensor | float, kernel_size: int) -> Tensor:
    """Blur each image with a Gaussian of its own width, sampled at `kernel_size` pixels, mirrored at the border.

    Equal to torchvision's `gaussian_blur` sample by sample, within 2e-6.

    Args:
        images: (B, C, H, W), uint8 or float in [0, 1].
        sigma: (B,) standard deviations in pixels, above 0.
        kernel_size: Odd number of pixels that the kernel spans; 1 leaves the images as they are.

    Returns:
        fp32 (B, C, H, W).

    Raises:
        ValueError: If the kernel is even or reaches beyond the mirrored image, or (on the host) a sigma is not above 0.

    Example:
        >>> images = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]).expand(1, 1, 5, 5)
        >>> gaussian_blur(images, torch.tensor([1.0]), kernel_size=3)[0, 0, 0]
        tensor([0.0000, 0.2741, 0.4519, 0.2741, 0.0000])
    """
    height, width = images.shape[2:]
    half = kernel_size // 2
    if kernel_size != 2 * half + 1 or half >= min(height, width):
        raise ValueError(
            f"kernel_size is {kernel_size}; expected an odd number of at most {2 * min(height, width) - 1} "
            f"for images of {height} x {width}."
        )
    require(sigma, 1e-6, math.inf, "sigma")
    if not isinstance(sigma, Tensor) or (sigma.device.type == "cpu" and sigma.numel()):
        half = min(half, max(1, int(REACH * float(sigma if not isinstance(sigma, Tensor) else sigma.max()))))
    offset = torch.arange(-half, half + 1, device=images.device)  # (K,)
    distance = offset / per_sample(sigma, images).view(-1, 1)  # (B, K), in standard deviations
    kernel = (-0.5 * distance.square()).exp().masked_fill_((distance.abs() > REACH) & (offset.abs() > 1), 0)
    kernel = kernel / kernel.sum(1, keepdim=True)
    rows = _blur_taps(kernel, height)
    return _sum_rows_and_columns(images, rows, rows if height == width else _blur_taps(kernel, width))
