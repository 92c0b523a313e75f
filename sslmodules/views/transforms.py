"""The base of all transforms, and those without geometry or colour of their own.

A transform does two things apart: `draw` chooses the parameters of every sample on the host, `apply_params` computes.
So the same seed gives the same views on every device, nothing waits for the device, the samples that a probability
leaves out are never computed, and a test can hand the same parameters to torchvision.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from sslmodules.views.pixels import horizontal_flip, normalize, solarize
from sslmodules.views.precision import fp32_without_gradient, to_float

Params = dict[str, Tensor]
"""Drawn parameters by name, on the host, the batch first in each: a slice of each belongs to a slice of the batch."""

# On a processor a batch is worked through in pieces of about this many values (2 MB), so that the steps of a view find
# the pixels in the cache. All parameters are drawn before, so the pieces change nothing but time.
CACHED_VALUES = 2**19


def uniform(batch: int, low: float, high: float, generator: Generator | None = None) -> Tensor:
    """Return `batch` numbers between low and high, drawn on the host."""
    return torch.rand(batch, generator=generator) * (high - low) + low


def chance(batch: int, p: float, generator: Generator | None = None) -> Tensor:
    """Return `batch` booleans that are true with probability p, drawn on the host."""
    return torch.rand(batch, generator=generator) < p


def require_probability(p: float) -> float:
    """Return p.

    Raises:
        ValueError: If it is no probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a probability is {p}; expected 0 to 1.")
    return p


def on_chosen(images: Tensor, mask: Tensor, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Replace the images that `mask` (B,) names by `function(chosen, *values of the chosen)`, in place where some stay.

    `mask` and `values` lie on the host, so the number of samples is known without asking the device.
    """
    chosen = mask.nonzero().flatten()
    if len(chosen) == 0:
        return images
    if len(chosen) == len(images):
        return function(images, *values)
    index = chosen.to(images.device, non_blocking=True)
    return images.index_copy_(0, index, function(images.index_select(0, index), *(value[chosen] for value in values)))


def own_float(images: Tensor) -> Tensor:
    """Return images as fp32 in memory of their own, which transforms may overwrite."""
    floats = to_float(images)
    return floats.clone() if floats.data_ptr() == images.data_ptr() else floats


class Transform(nn.Module):
    """A random transform of a batch: `draw` chooses, `apply_params` computes, calling it does both.

    Call it with images (B, C, H, W), or one image (C, H, W) as in a loader: uint8, or float in [0, 1]. The result is
    fp32 on the images' device, without gradient, computed in fp32 under autocast too; the input is never written to.
    The parameters come from `generator`, a `torch.Generator` on the CPU, or from torch's global one.

    A new transform overrides `apply_params`, and `draw` if it is random.

    Example:
        >>> class Invert(Transform):
        ...     def apply_params(self, images, params):
        ...         return 1 - images
        >>> Invert()(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
        tensor([[[[1., 0.]]]])
    """

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return the parameters for `batch` images of height x width: host tensors with the batch first."""
        return {}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the transformed images: fp32 (B, C, H, W) that the caller gives away and that may be overwritten."""
        raise NotImplementedError(f"{type(self).__name__} must define apply_params(images, params).")

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that images of height x width come out with."""
        return height, width

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw parameters for a batch (B, C, H, W) or an image (C, H, W), and apply them.

        Raises:
            ValueError: For another shape, a type that is neither uint8 nor float, or a generator not on the CPU.
        """
        if images.ndim not in (3, 4):
            raise ValueError(f"images have the shape {tuple(images.shape)}; expected (B, C, H, W) or (C, H, W).")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"the generator is on {generator.device}; views are drawn on the host: torch.Generator().")
        batch = images if images.ndim == 4 else images[None]
        b, c, height, width = batch.shape
        params = self.draw(b, height, width, generator)
        piece = max(b, 1)
        if images.device.type == "cpu":
            out_height, out_width = self.output_size(height, width)
            piece = max(1, CACHED_VALUES // (c * max(height * width, out_height * out_width)))
        with fp32_without_gradient(images.device):
            pieces = [
                self.apply_params(
                    own_float(batch[start : start + piece]),
                    {name: values[start : start + piece] for name, values in params.items()},
                )
                for start in range(0, max(b, 1), piece)
            ]
        views = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return views if images.ndim == 4 else views[0]


class Compose(Transform):
    """Transforms one after the other.

    Example:
        >>> view = Compose(RandomHorizontalFlip(), Normalize([0.5], [0.5]))
        >>> view(torch.full((8, 3, 4, 4), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = cast(Sequence[Transform], nn.ModuleList(transforms))

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return the parameters of all parts, named `0.boxes`, `1.mask`, ..."""
        params: Params = {}
        for i, transform in enumerate(self.transforms):
            drawn = transform.draw(batch, height, width, generator)
            params |= {f"{i}.{name}": values for name, values in drawn.items()}
            height, width = transform.output_size(height, width)
        return params

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return what the last part makes of the images."""
        for i, transform in enumerate(self.transforms):
            own = f"{i}."
            drawn = {name.removeprefix(own): values for name, values in params.items() if name.startswith(own)}
            images = transform.apply_params(images, drawn)
        return images

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size after all parts."""
        for transform in self.transforms:
            height, width = transform.output_size(height, width)
        return height, width


class Identity(Transform):
    """Images as they are, as floats.

    Example:
        >>> Identity()(torch.tensor([[[51]]], dtype=torch.uint8))
        tensor([[[0.2000]]])
    """

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the images."""
        return images


class Normalize(Transform):
    """`(images - mean) / std` by channel.

    Args:
        mean: One value a channel, or one for all, on the scale of [0, 1].
        std: As the mean, above 0.

    Example:
        >>> Normalize(mean=[0.5], std=[0.25])(torch.ones(3, 1, 1)).flatten()
        tensor([2., 2., 2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Buffers, so that they follow the module to its device; constants, so that no checkpoint needs them.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the normalised images."""
        return normalize(images, self.mean, self.std)


class RandomHorizontalFlip(Transform):
    """Mirror each image left to right with probability p.

    Example:
        >>> RandomHorizontalFlip(p=1.0)(torch.tensor([[[0.0, 1.0]]]))
        tensor([[[1., 0.]]])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = require_probability(p)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `mask` (B,)."""
        return {"mask": chance(batch, self.p, generator)}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the images, those in `mask` mirrored."""
        return on_chosen(images, params["mask"], horizontal_flip)


class RandomSolarize(Transform):
    """Invert the pixels at or above the threshold, in each image with probability p (BYOL, appendix B; MoCo v3).

    Args:
        threshold: In [0, 1]; 0.5 is PIL's 128 of 255.
        p: Probability for each image.

    Example:
        >>> RandomSolarize(p=1.0)(torch.tensor([[[0.25, 0.75, 1.0]]]))
        tensor([[[0.2500, 0.2500, 0.0000]]])
    """

    def __init__(self, threshold: float = 0.5, p: float = 0.2) -> None:
        super().__init__()
        self.threshold = threshold
        self.p = require_probability(p)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `mask` (B,)."""
        return {"mask": chance(batch, self.p, generator)}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the images, those in `mask` solarised."""
        return on_chosen(images, params["mask"], lambda chosen: solarize(chosen, self.threshold))
