"""Which images have labels, and class-balanced shares of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from sslmodules.datamodules.images import class_numbers, image_and_label


def labels_of(dataset: Any) -> Tensor:
    """All labels of a dataset (N,), -1 for none: its `targets` or `labels` where it has them, else each item's own.

    Reading the items decodes every image once.

    Example:
        >>> labels_of([(torch.zeros(1, 2, 2), 4), (torch.zeros(1, 2, 2), 1)])
        tensor([4, 1])

    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if getattr(dataset, "target_transform", None) is None:
        for name in ("targets", "labels"):
            labels = getattr(dataset, name, None)
            if isinstance(labels, Sequence | np.ndarray | Tensor) and len(labels) == len(dataset):
                return class_numbers(labels)
    labels = (image_and_label(dataset[index])[1] for index in range(len(dataset)))
    return class_numbers([-1 if label is None else label for label in labels])


def balanced_indices(labels: Tensor | Sequence[int], fraction: float, seed: int = 0) -> Tensor:
    """Indices, ascending, of `fraction` of each class, at least one image of each; labels below 0 belong to no class.

    The smaller of two fractions with the same seed lies inside the larger.

    Args:
        labels: (N,) integers.
        fraction: in (0, 1].
        seed: a number >= 0.

    Raises:
        ValueError: if the fraction is outside its range.

    Example:
        >>> balanced_indices([0, 0, 0, 0, 1, 1, 1, 1, -1], 0.5).shape
        torch.Size([4])

    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the labels lies in (0, 1], got {fraction}")
    labels = torch.as_tensor(labels)
    chosen = [torch.empty(0, dtype=torch.long)]
    for value in labels[labels >= 0].unique().tolist():
        members = torch.nonzero(labels == value).flatten()
        key = np.random.SeedSequence((seed, value)).generate_state(1, np.uint64)
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(int(key[0])))
        chosen.append(members[order[: max(1, round(fraction * len(members)))]])
    return torch.cat(chosen).sort().values


def hold_out(labels: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of indices, ascending: what stays, and a class-balanced `fraction` that is held out.

    A class of one image stays. Where no image has a label, any may be held out.

    Args:
        labels: (N,) integers, -1 for none.
        fraction: in [0, 1).
        seed: a number >= 0.

    Raises:
        ValueError: if the fraction is outside its range.

    Example:
        >>> stays, held = hold_out(torch.tensor([0] * 10 + [1] * 10 + [2]), 0.1)
        >>> len(stays), len(held)
        (19, 2)

    """
    if not 0 <= fraction < 1:
        raise ValueError(f"a held-out fraction lies in [0, 1), got {fraction}")
    if fraction == 0:
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.long)
    groups = labels if (labels >= 0).any() else torch.zeros_like(labels)
    held = balanced_indices(groups, fraction, seed)
    held = held[torch.bincount(groups[groups >= 0])[groups[held]] > 1]
    stays = torch.ones(len(labels), dtype=torch.bool)
    stays[held] = False
    return torch.nonzero(stays).flatten(), held


def keep_labels(
    labels: Tensor, indices: Tensor, fraction: float, unlabeled: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The training set `(indices, labels)` in which only a class-balanced `fraction` has labels.

    Args:
        labels: (N,) of the whole dataset.
        indices: the part of it to train on.
        fraction: in (0, 1].
        unlabeled: "keep" the others with label -1, or "drop" them.
        seed: a number >= 0.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> keep_labels(torch.tensor([0, 0, 1, 1]), torch.arange(4), 0.5, "keep", seed=0)[1].ge(0).sum()
        tensor(2)

    """
    if unlabeled not in ("keep", "drop"):
        raise ValueError(f"unlabeled is 'keep' or 'drop', got {unlabeled!r}")
    chosen = indices[balanced_indices(labels[indices], fraction, seed)]
    if fraction == 1:
        return indices, labels
    if unlabeled == "drop":
        return chosen, labels
    kept = torch.full_like(labels, -1)
    kept[chosen] = labels[chosen]
    return indices, kept
