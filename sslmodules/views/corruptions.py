"""The common corruptions, each at five severities, made on the device from a seed (Hendrycks, Dietterich, ICLR 2019).

The strengths are those of the published sets: of CIFAR-10-C for images of up to 64 pixels, of ImageNet-C for larger
ones. Lengths in pixels stay what they are at 32 and 224 pixels, apart from the elastic transform's.

What differs from those sets: nothing is rounded to 8 bits on the way (nor stored as JPEG, as ImageNet-C is), apart from
what shot noise and JPEG read; the random numbers are our own; and "frost" is missing, which is made of photographs that
do not come with this package. So errors are comparable between encoders measured here, and not with published ones.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from sslmodules.views.color import grayscale
from sslmodules.views.filters import (
    convolved,
    copied_neighbours,
    disk,
    motion_blur,
    photons,
    pixelated,
    plasma,
    resampled,
    smooth,
    zoomed,
)
from sslmodules.views.transforms import Params, Transform, uniform

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64  # px, the longer side of images that are corrupted as CIFAR-10-C's


class Corruption(Transform):
    """One corruption of all images of a batch, each in its own way.

    A new one writes `corrupt`, the strengths, and `draw` if it is random.

    Args:
        severity: 1 to 5.

    Raises:
        ValueError: another severity; or, when called, images that have neither one channel nor three.

    Example:
        >>> Brightness(severity=5)(torch.tensor([0.0, 0.25, 0.5]).view(3, 1, 1)).flatten()
        tensor([0.0000, 0.4000, 0.8000])
    """

    small: ClassVar[Sequence[Any]]  # what `corrupt` is given at each severity, of images up to 64 pixels
    large: ClassVar[Sequence[Any]]  # and of larger ones

    def __init__(self, severity: int = 3) -> None:
        super().__init__()
        if severity not in SEVERITIES:
            raise ValueError(f"severity is {severity}; expected 1 to 5.")
        self.severity = severity

    def strength(self, height: int, width: int) -> Any:
        """Return what `corrupt` is given for images of height x width."""
        return (self.small if max(height, width) <= SMALL else self.large)[self.severity - 1]

    def corrupt(self, images: Tensor, params: Params, strength: Any) -> Tensor:
        """Return the corrupted images (B, C, H, W), which are clamped to [0, 1] then."""
        raise NotImplementedError(f"{type(self).__name__} must define corrupt(images, params, strength).")

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the corrupted images in [0, 1]."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"the images have {images.shape[1]} channels; corruptions are of images of 1 or 3.")
        return self.corrupt(images, params, self.strength(*images.shape[2:])).clamp_(0, 1)


class GaussianNoise(Corruption):
    """Normal noise on every value: of low light."""

    small = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviations
    large = (0.08, 0.12, 0.18, 0.26, 0.38)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `noise` (B, 3, H, W)."""
        return {"noise": torch.randn(batch, 3, height, width, generator=generator)}

    def corrupt(self, images: Tensor, params: Params, strength: float) -> Tensor:
        """Add the noise."""
        return images.add_(beside(images, params["noise"]), alpha=strength)


class ShotNoise(Corruption):
    """Poisson noise: light comes in whole photons."""

    small = (500, 250, 100, 75, 50)  # photons of a white pixel
    large = (60, 25, 12, 5, 3)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `uniform` (B, 3, H, W)."""
        return {"uniform": torch.rand(batch, 3, height, width, generator=generator)}

    def corrupt(self, images: Tensor, params: Params, strength: float) -> Tensor:
        """Count the photons."""
        return photons(images, beside(images, params["uniform"]), strength) / strength


class ImpulseNoise(Corruption):
    """Salt and pepper, in every channel by itself: of bit errors."""

    small = (0.01, 0.02, 0.03, 0.05, 0.07)  # share of values
    large = (0.03, 0.06, 0.09, 0.17, 0.27)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `uniform` (B, 3, H, W)."""
        return {"uniform": torch.rand(batch, 3, height, width, generator=generator)}

    def corrupt(self, images: Tensor, params: Params, strength: float) -> Tensor:
        """Set a share to black or white."""
        drawn = beside(images, params["uniform"])
        return images.masked_fill_(drawn < strength / 2, 0).masked_fill_(drawn >= 1 - strength / 2, 1)


class DefocusBlur(Corruption):
    """A lens out of focus."""

    small = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))  # radius of the disk, sigma of its edge, in px
    large = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, float]) -> Tensor:
        """Spread every pixel over a disk."""
        return convolved(images, disk(*strength))


class GlassBlur(Corruption):
    """Frosted glass: pixels take colours from around them, between two blurs.

    The published code swaps two pixels by a statement that copies one over the other; so they are copied here.
    """

    small = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))  # sigma, distance in px, rounds
    large = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `source` (B, H · W)."""
        _, distance, rounds = self.strength(height, width)
        steps = rounds * max(height - 2 * distance, 0) * max(width - 2 * distance, 0)
        shape = (steps, batch, 2)
        offsets = torch.randint(-distance, distance, shape, generator=generator, dtype=torch.int8)
        return {"source": copied_neighbours(offsets, height, width, distance)}

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, int, int]) -> Tensor:
        """Blur, take from the neighbours, blur."""
        pixels = smooth(images, strength[0]).flatten(2)  # (B, C, HW)
        source = params["source"].to(images.device, non_blocking=True)[:, None]
        return smooth(pixels.gather(2, source.expand_as(pixels)).view_as(images), strength[0])


class MotionBlur(Corruption):
    """A camera that moves, along a line at up to 45° from the horizontal."""

    small = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))  # radius and sigma in px
    large = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `angle` (B,) in degrees."""
        return {"angle": uniform(batch, -45, 45, generator)}

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, float]) -> Tensor:
        """Blur along a line."""
        return motion_blur(images, params["angle"], *strength)


class ZoomBlur(Corruption):
    """A camera that moves towards the scene: the mean of enlarged images."""

    small = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))  # end and step of the factors from 1
    large = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, float]) -> Tensor:
        """Average over the factors."""
        factors = np.arange(1, *strength)  # its rounding decides whether the end is among them
        return sum((zoomed(images, float(f)) for f in factors), images) / (len(factors) + 1)


class Snow(Corruption):
    """Flakes in the wind, and whitened images."""

    # of the flakes: mean and standard deviation of the noise, zoom, threshold, radius and sigma of their motion in px;
    # and the weight of the image that is not whitened
    small = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    large = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `noise` (B, 1, H, W) and `angle` (B,) in degrees."""
        noise = torch.randn(batch, 1, height, width, generator=generator)
        return {"noise": noise, "angle": uniform(batch, -135, -45, generator)}

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, ...]) -> Tensor:
        """Whiten, and let it snow: the same flakes twice, from above and from below."""
        mean, std, factor, threshold, radius, sigma, kept = strength
        flakes = zoomed(beside(images, params["noise"]) * std + mean, factor)
        flakes = motion_blur(torch.where(flakes < threshold, 0, flakes).clamp_(0, 1), params["angle"], radius, sigma)
        white = torch.maximum(images, grayscale(images) * 1.5 + 0.5)
        return images.lerp_(white, 1 - kept).add_(flakes).add_(flakes.flip(2, 3))


class Fog(Corruption):
    """Clouds of fog in front."""

    small = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))  # thickness, and decay of its details
    large = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `noise` (B, S, S), with S the least power of two that covers the images."""
        side = 1 << (max(height, width) - 1).bit_length()
        return {"noise": torch.rand(batch, side, side, generator=generator) * 2 - 1}

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, float]) -> Tensor:
        """Add the fog, and bring the sum to the image's range."""
        thickness, decay = strength
        fog = plasma(params["noise"].to(images.device, non_blocking=True), decay)[
            :, None, : images.shape[2], : images.shape[3]
        ]
        most = images.amax((1, 2, 3), keepdim=True)
        return images.add_(fog, alpha=thickness).mul_(most / (most + thickness))


class Brightness(Corruption):
    """More light: a greater value in HSV."""

    small = (0.05, 0.1, 0.15, 0.2, 0.3)
    large = (0.1, 0.2, 0.3, 0.4, 0.5)

    def corrupt(self, images: Tensor, params: Params, strength: float) -> Tensor:
        """Scale each pixel so that its largest channel is greater by the strength, black to grey."""
        value = images.amax(1, keepdim=True)
        brighter = (value + strength).clamp_(max=1)
        return torch.where(value > 0, images * (brighter / value), brighter)


class Contrast(Corruption):
    """Less contrast: each channel nearer to its mean."""

    small = (0.75, 0.5, 0.4, 0.3, 0.15)
    large = (0.4, 0.3, 0.2, 0.1, 0.05)

    def corrupt(self, images: Tensor, params: Params, strength: float) -> Tensor:
        """Keep a share of the distance from the mean."""
        mean = images.mean((2, 3), keepdim=True)
        return (images - mean) * strength + mean


class ElasticTransform(Corruption):
    """Images stretched and pulled: an affine map, and then displacements that vary smoothly."""

    # displacement, sigma of its smoothness, and displacement of the affine map's corners, in sides of the image
    small = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    large = tuple(
        tuple(length * 244 / 224 for length in lengths)  # published as multiples of 244 px, for images of 224
        for lengths in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    )

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `noise` (B, 2, H, W) and `corners` (B, 3, 2), both in [-1, 1]."""
        noise = torch.rand(batch, 2, height, width, generator=generator) * 2 - 1
        return {"noise": noise, "corners": torch.rand(batch, 3, 2, generator=generator) * 2 - 1}

    def corrupt(self, images: Tensor, params: Params, strength: tuple[float, float, float]) -> Tensor:
        """Resample twice."""
        height, width = images.shape[2:]
        displacement, sigma, corner = (min(height, width) * length for length in strength)
        third = min(height, width) // 3
        around = torch.tensor([[1, 1], [-1, 1], [-1, -1]]) * third  # the map is given by where three points go
        points = (torch.tensor([height // 2, width // 2]) + around).double()  # (3, 2), rows and columns
        moved = torch.cat([points + corner * params["corners"], torch.ones(len(images), 3, 1)], 2)  # (B, 3, 3)
        back = torch.linalg.solve(moved, points.expand(len(images), 3, 2)).to(images.device, torch.float32)
        rows, columns = torch.meshgrid(*(torch.arange(n, device=images.device) for n in (height, width)), indexing="ij")
        place = torch.stack([rows, columns, torch.ones_like(rows)], 2).float()  # (H, W, 3)
        down, right = torch.einsum("hwi,bij->jbhw", place, back).unbind()
        images = resampled(images, down, right, "mirror")
        noise = smooth(params["noise"].to(images.device, non_blocking=True), sigma, truncate=3, border="reflect")
        down, right = (displacement * noise).unbind(1)  # (B, H, W) each
        return resampled(images, rows + down, columns + right, "reflect")


class Pixelate(Corruption):
    """Images of low resolution, enlarged."""

    small = (0.95, 0.9, 0.85, 0.75, 0.65)  # share of the sides
    large = (0.6, 0.5, 0.4, 0.3, 0.25)

    def corrupt(self, images: Tensor, params: Params, strength: float) -> Tensor:
        """Shrink and enlarge."""
        return pixelated(images, strength)


class JPEGCompression(Corruption):
    """JPEG, by PIL on the host."""

    small = (80, 65, 58, 50, 40)  # quality
    large = (25, 18, 15, 10, 7)

    def corrupt(self, images: Tensor, params: Params, strength: int) -> Tensor:
        """Compress and read back."""
        pixels = images.mul(255).round_().to("cpu", torch.uint8)
        read = torch.stack([_compressed(each, strength) for each in pixels])
        return read.to(images.device, torch.float32).div_(255)


CORRUPTIONS: dict[str, type[Corruption]] = {
    "gaussian_noise": GaussianNoise,
    "shot_noise": ShotNoise,
    "impulse_noise": ImpulseNoise,
    "defocus_blur": DefocusBlur,
    "glass_blur": GlassBlur,
    "motion_blur": MotionBlur,
    "zoom_blur": ZoomBlur,
    "snow": Snow,
    "fog": Fog,
    "brightness": Brightness,
    "contrast": Contrast,
    "elastic_transform": ElasticTransform,
    "pixelate": Pixelate,
    "jpeg_compression": JPEGCompression,
}
"""The corruptions by their published names."""


def beside(images: Tensor, drawn: Tensor) -> Tensor:
    """Drawn numbers (B, 3, ...) on the images' device, as many channels as these have."""
    return drawn.to(images.device, non_blocking=True)[:, : images.shape[1]]


def _compressed(image: Tensor, quality: int) -> Tensor:
    file = BytesIO()
    to_pil_image(image).save(file, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(file))
