"""Transforms that move pixels or mix neighbours: crops, resizes, blurs."""

import math

import torch
from torch import Generator, Tensor

from sslmodules.views.resample import Interpolation, gaussian_blur, resized_crop
from sslmodules.views.transforms import Params, Transform, chance, on_chosen, require_probability, uniform


def random_boxes(
    batch: int,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: Generator | None = None,
) -> Tensor:
    """Return (B, 4) boxes (top, left, height, width), distributed as in torchvision's `RandomResizedCrop`.

    Ten tries each: an area uniform in `scale`, a log aspect ratio uniform in `ratio`, sides rounded. The first that
    fits stands anywhere in the image; if none fits, the largest central box whose aspect ratio is in range.

    Example:
        >>> random_boxes(2, 32, 32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        tensor([[ 0,  0, 32, 32],
                [ 0,  0, 32, 32]])
    """
    tries = batch * 10
    area = (uniform(tries, *scale, generator) * height * width).view(batch, 10)
    aspect = uniform(tries, math.log(ratio[0]), math.log(ratio[1]), generator).exp().view(batch, 10)
    w = (area * aspect).sqrt().round().long()  # (B, 10)
    h = (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # (B, 1), the first that fits
    h, w = h.gather(1, first).squeeze(1), w.gather(1, first).squeeze(1)  # (B,)
    top = (torch.rand(batch, generator=generator) * (height - h + 1)).long().minimum(height - h)
    left = (torch.rand(batch, generator=generator) * (width - w + 1)).long().minimum(width - w)
    boxes = torch.stack([top, left, h, w], 1)  # (B, 4)

    central_h, central_w = height, width
    if width / height < ratio[0]:
        central_h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        central_w = min(width, max(1, round(height * ratio[1])))
    central = torch.tensor([(height - central_h) // 2, (width - central_w) // 2, central_h, central_w])
    return torch.where(fits.any(1, keepdim=True), boxes, central)


class RandomResizedCrop(Transform):
    """Cut a random box out of each image and resize it (Szegedy et al. 2015; SimCLR, appendix A).

    Args:
        size: Height and width of the result; `None` for those of the incoming images.
        scale: Least and greatest area of the box, as a fraction of the image.
        ratio: Least and greatest aspect ratio (width / height) of the box.
        interpolation: `"bicubic"` (SimCLR's code) or `"bilinear"` (torchvision's default, MoCo's), both antialiased.
            What bicubic overshoots is clamped to [0, 1].
        flip: Probability of mirroring each result left to right, at no cost. Operations on colours and symmetric blurs
            commute with mirroring, so a recipe that flips at its end can flip here.

    Raises:
        ValueError: For ranges that are not ascending or not positive.

    Example:
        >>> RandomResizedCrop(size=24)(torch.zeros(2, 3, 32, 40)).shape
        torch.Size([2, 3, 24, 24])
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        flip: float = 0.0,
    ) -> None:
        super().__init__()
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
            raise ValueError(f"scale is {scale} and ratio {ratio}; expected 0 < least <= greatest, areas at most 1.")
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolation: Interpolation = interpolation
        self.flip = require_probability(flip)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `boxes` (B, 4) and `flip` (B,)."""
        boxes = random_boxes(batch, height, width, self.scale, self.ratio, generator)
        return {"boxes": boxes, "flip": chance(batch, self.flip, generator)}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the boxes' contents, resized."""
        size = self.output_size(*images.shape[2:])
        crops = resized_crop(images, params["boxes"], size, params["flip"], self.interpolation)
        return crops.clamp_(0, 1) if self.interpolation == "bicubic" else crops

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return `size`, or the incoming one where it is `None`."""
        if self.size is None:
            return height, width
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


class Resize(Transform):
    """Resize whole images with antialiasing, without keeping the aspect ratio; values stay in [0, 1].

    Args:
        size: Height and width of the result; one number for both.
        interpolation: `"bilinear"` or `"bicubic"`.

    Example:
        >>> Resize(2)(torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 4, 4)).shape
        torch.Size([1, 2, 2])
    """

    def __init__(self, size: int | tuple[int, int], interpolation: Interpolation = "bilinear") -> None:
        super().__init__()
        self.size = size
        self.interpolation: Interpolation = interpolation

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the resized images."""
        whole = torch.tensor([0, 0, *images.shape[2:]]).expand(len(images), 4)
        return resized_crop(images, whole, self.size, None, self.interpolation).clamp_(0, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return `size`."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


class GaussianBlur(Transform):
    """Blur each image with probability p, with a width of its own (SimCLR, appendix A).

    Args:
        sigma: Least and greatest standard deviation in pixels, drawn uniformly.
        kernel_size: Odd number of pixels that the kernel spans. `None` takes a tenth of the shorter side as SimCLR
            does, `2 * (side // 10 // 2) + 1`: 23 at 224 pixels, 3 at 32, and none (no blur) below 20.
        p: Probability for each image.

    Raises:
        ValueError: If sigma's range is not ascending and above 0; and, when called, if the kernel is even or reaches
            beyond the mirrored image.

    Example:
        >>> GaussianBlur(kernel_size=3, p=1.0)(torch.ones(2, 3, 8, 8)).allclose(torch.ones(2, 3, 8, 8))
        True
    """

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), kernel_size: int | None = None, p: float = 0.5) -> None:
        super().__init__()
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma is {sigma}; expected 0 < least <= greatest.")
        self.sigma = sigma
        self.kernel_size = kernel_size
        self.p = require_probability(p)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `mask` (B,) and `sigma` (B,)."""
        return {"mask": chance(batch, self.p, generator), "sigma": uniform(batch, *self.sigma, generator)}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the images, those in `mask` blurred."""
        kernel_size = self.kernel_size
        if kernel_size is None:
            kernel_size = 2 * (min(images.shape[2:]) // 10 // 2) + 1
        if kernel_size == 1:
            return images
        return on_chosen(
            images, params["mask"], lambda chosen, sigma: gaussian_blur(chosen, sigma, kernel_size), params["sigma"]
        )
