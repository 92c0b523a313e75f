"""Features of labeled images by a frozen module: of the whole encoder, and of its stages."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from tqdm.auto import tqdm

from sslmodules.callbacks.features import frozen, labeled_part


class Features(NamedTuple):
    """What an encoder makes of N labeled images."""

    representation: Tensor  # (N, D)
    labels: Tensor  # (N,), or (N, C) of 0 and 1
    stages: dict[int, Tensor]  # the mean (N, C) of each stage's map, by the stage's number


def extract(
    module: LightningModule,
    loader: Iterable[Any],
    max_images: int | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features and labels of a loader's labeled images, by ``module(images)`` in eval mode.

    Args:
        module: any module whose forward gives (B, D).
        loader: batches ``(images, labels)``, or mappings with ``"image"`` and ``"label"``, or with ``"labeled_image"``
            and ``"labeled_label"``. Images whose label is below 0 are left out. Labels may be (B, C) of 0 and 1.
        max_images: stop after so many.
        read: images -> (B, D); None is the module itself.

    Returns:
        (N, D) fp32, and (N,) or (N, C), on the CPU. N is 0 where nothing has a label.
    """
    features, labels, count = [], [], 0
    with frozen(module):
        for batch in tqdm(loader, "features", leave=False, disable=None):  # None: a bar on terminals alone
            part = labeled_part(batch, several=True)
            if part is None:
                continue
            x, y = part
            known = (y >= 0) if y.ndim == 1 else torch.ones(len(y), dtype=torch.bool, device=y.device)
            x, y = move_data_to_device(x[known], module.device), y[known]
            if len(y):
                features.append((read or module)(x).float().cpu())
                labels.append(y.cpu())
                count += len(y)
            if max_images is not None and count >= max_images:
                break
    if not labels:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.long)
    return torch.cat(features)[:max_images], torch.cat(labels)[:max_images]


def features_of(
    module: LightningModule, loader: Iterable[Any], stages: int = 0, max_images: int | None = None
) -> Features:
    """Representation and stages of a loader's labeled images.

    Args:
        module: any module whose forward gives (B, D); with ``stages`` an :class:`~sslmodules.SSLModule`.
        loader: see :func:`extract`.
        stages: how many stages to read at most, each as the mean of its map, by :meth:`sslmodules.SSLModule.features`.
            Of more (a transformer's blocks) so many are taken evenly, the last among them.
        max_images: stop after so many.
    """
    chosen: list[int] = []
    widths: list[int] = []  # of the representation, then of each stage

    def read(images: Tensor) -> Tensor:
        if stages and not chosen:
            count = len(module.features(images[:1]))  # type: ignore[operator]
            chosen[:] = sorted(count - 1 - i for i in evenly(count, stages))
        maps = module.features(images, chosen) if chosen else []  # type: ignore[operator]
        parts = [module(images), *(m.mean((2, 3)) for m in maps)]
        widths[:] = [part.shape[1] for part in parts]
        return torch.cat(parts, 1)

    features, labels = extract(module, loader, max_images, read)
    representation, *by_stage = features.split(widths, 1) if widths else [features]
    return Features(representation, labels, dict(zip(chosen, by_stage, strict=True)))


def evenly(length: int, count: int) -> list[int]:
    """At most ``count`` places among ``length``, evenly spaced from the first on.

    >>> evenly(10, 4), evenly(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    count = min(length, count)
    return [i * length // count for i in range(count)]
