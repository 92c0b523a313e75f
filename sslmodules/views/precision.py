"""What every function on a batch of images shares: the float range, fp32 arithmetic, parameters one a sample."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from sslmodules import precision

P = ParamSpec("P")


def to_float(images: Tensor) -> Tensor:
    """Return images as fp32: uint8 divided by 255, floating point as it is (shared, not copied, where already fp32).

    Args:
        images: uint8, or floating point in [0, 1]; any shape.

    Raises:
        ValueError: For any other type.

    Example:
        >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255)
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; pass uint8 in [0, 255] or floating point in [0, 1].")
    return images.to(torch.float32)


@contextmanager
def fp32_without_gradient(device: torch.device) -> Iterator[None]:
    """Turn off gradients, and whatever would compute in less than the tensors' own precision."""
    with torch.no_grad(), precision.full_precision(device.type):
        yield


def full_precision(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Make a function of a batch run in fp32, outside autocast and without gradient.

    Views are data: rounded to bf16 a crop would be off by several grey levels, and nothing is learned through them.
    The functions take images of (B, C, H, W), uint8 or float, and see fp32.
    """

    @wraps(function)
    def wrapper(images: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        if images.ndim != 4:
            raise ValueError(f"images have the shape {tuple(images.shape)}; expected a batch (B, C, H, W).")
        with fp32_without_gradient(images.device):
            return function(to_float(images), *args, **kwargs)

    return wrapper


def per_sample(values: Tensor | float, images: Tensor) -> Tensor:
    """Return one value for each sample as (B, 1, 1, 1) beside the images; a float stands for all samples.

    Raises:
        ValueError: If `values` is a tensor of another shape than (B,).
    """
    if not isinstance(values, Tensor):
        return torch.full((len(images), 1, 1, 1), values, dtype=torch.float32, device=images.device)
    if values.shape != images.shape[:1]:
        raise ValueError(f"parameters have the shape {tuple(values.shape)}; expected one a sample, ({len(images)},).")
    return values.to(images.device, torch.float32, non_blocking=True).view(-1, 1, 1, 1)


def require(values: Tensor | float, lowest: float, highest: float, name: str) -> None:
    """Refuse parameters outside [lowest, highest]; only those on the host, since looking at others would wait.

    Raises:
        ValueError: If one is outside (or NaN).
    """
    if isinstance(values, Tensor) and (values.device.type != "cpu" or values.numel() == 0):
        return
    least, most = (float(end) for end in (values.aminmax() if isinstance(values, Tensor) else (values, values)))
    if not (least >= lowest and most <= highest):
        raise ValueError(f"{name} lies in [{least:g}, {most:g}]; expected it within [{lowest:g}, {highest:g}].")
