"""Batch norm where a batch, such as the odd last one of an epoch, holds a single image."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslmodules.distributed import world_size


@contextmanager
def single_image_statistics(module: nn.Module, batch: Any) -> Iterator[None]:
    """Let batch norms that see one value a channel use their running statistics, where torch raises an error.

    That happens behind global pooling when a batch holds a single image. Norms that see more values, and all norms in a
    larger batch, are left alone.

    Args:
        module: whose batch norms are meant.
        batch: what the loader yields.

    >>> import torch
    >>> norm = nn.BatchNorm1d(2)
    >>> with single_image_statistics(norm, torch.zeros(1, 2)):
    ...     norm(torch.ones(1, 2)).shape, norm.training
    (torch.Size([1, 2]), False)
    >>> norm.training
    True
    """
    if _length(batch) != 1:
        yield
        return
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    if world_size() > 1:  # the others' images count as well
        norms = [m for m in norms if not isinstance(m, nn.SyncBatchNorm)]
    hooks = [m.register_forward_pre_hook(_switch) for m in norms]
    try:
        yield
    finally:
        for norm, hook in zip(norms, hooks, strict=True):
            hook.remove()
            norm.train()


def _switch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    norm.training = inputs[0].numel() > inputs[0].shape[1]


def _length(batch: Any) -> int:
    """Number of images in a batch: the length of the first tensor in it."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)
