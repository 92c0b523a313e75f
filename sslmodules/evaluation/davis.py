"""How well masks of objects in a video agree with the true ones: region J and boundary F, as DAVIS defines them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 4;
Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", 2017, for several objects.
"""

import math
from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

import torch
from scipy.spatial import KDTree
from torch import Tensor

QUARTERS = 4  # of a sequence, between the first and last of which its quality decays


class Statistics(NamedTuple):
    """Of J or F over the frames of a sequence: its mean, the share of frames above 0.5, and how much it falls."""

    mean: float
    recall: float
    decay: float


class Agreement(NamedTuple):
    """Of the masks of an object with the true ones."""

    region: Statistics  # J
    boundary: Statistics  # F


def region_similarity(predicted: Tensor, true: Tensor) -> Tensor:
    """Region similarity J: the intersection of two masks over their union, 1 where both are empty.

    Args:
        predicted: bool (..., H, W).
        true: of the same shape.

    Returns:
        (...) fp32 in [0, 1].

    >>> region_similarity(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]]))
    tensor(0.3333)
    """
    both, either = (predicted & true).sum((-2, -1)), (predicted | true).sum((-2, -1))
    return torch.where(either > 0, both / either, 1.0)


def boundary_accuracy(predicted: Tensor, true: Tensor, tolerance: float = 0.008) -> Tensor:
    """Boundary accuracy F: the harmonic mean of precision and recall of the masks' boundaries.

    A pixel of one boundary is matched where the other has one in a disk of ``tolerance`` times the image's diagonal,
    rounded up to whole pixels, around it. F is 1 where neither mask has a boundary, and 0 where one has none.

    Args:
        predicted: bool (..., H, W).
        true: of the same shape.
        tolerance: share of the diagonal.

    Returns:
        (...) fp32 in [0, 1], on the CPU.

    >>> mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    >>> mask[:, 10:20, 10:20] = True
    >>> boundary_accuracy(mask.roll(1, 2), mask)  # within ceil(0.008 · 56.6) = 1 px
    tensor([1.])
    """
    radius = math.ceil(tolerance * math.hypot(*true.shape[-2:]))
    frames = (boundary(m).cpu().reshape(-1, *m.shape[-2:]) for m in (predicted, true))
    found = [_f_measure(p.nonzero(), t.nonzero(), radius) for p, t in zip(*frames, strict=True)]
    return torch.tensor(found, dtype=torch.float).view(true.shape[:-2])


def boundary(mask: Tensor) -> Tensor:
    """Boundary, one pixel wide: where a pixel differs from that right of it, below it, or right below it.

    >>> boundary(torch.tensor([[0, 0, 0], [0, 0, 1]]).bool()).int()
    tensor([[0, 1, 1],
            [0, 1, 0]], dtype=torch.int32)
    """
    found = torch.zeros_like(mask)
    found[..., :-1] |= mask[..., :-1] ^ mask[..., 1:]
    found[..., :-1, :] |= mask[..., :-1, :] ^ mask[..., 1:, :]
    found[..., :-1, :-1] |= mask[..., :-1, :-1] ^ mask[..., 1:, 1:]
    return found


def _f_measure(predicted: Tensor, true: Tensor, radius: int) -> float:
    """F of two boundaries, pixels (P, 2) and (T, 2)."""
    if len(predicted) == 0 or len(true) == 0:
        return float(len(predicted) == len(true))
    precision = (KDTree(true).query(predicted)[0] <= radius).mean()
    recall = (KDTree(predicted).query(true)[0] <= radius).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def statistics(values: Tensor) -> Statistics:
    """Mean, recall and decay of J or F over the frames (T,) of a sequence.

    The decay is the mean of the first quarter less that of the last; quarters share the frames at their ends.

    >>> statistics(torch.tensor([1.0, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0, 0.5]))
    Statistics(mean=0.4375, recall=0.375, decay=0.75)
    """
    ends = [math.floor(i * (len(values) - 1) / QUARTERS + 0.5) for i in range(QUARTERS + 1)]
    first, final = values[: ends[1] + 1], values[ends[-2] :]
    return Statistics(values.mean().item(), (values > 0.5).float().mean().item(), (first.mean() - final.mean()).item())


def mean_agreement(agreements: Iterable[Agreement]) -> Agreement:
    """Mean of every number over objects, be they of one sequence or of several.

    >>> some, other = Statistics(0.5, 0.5, 0.0), Statistics(1.0, 1.0, 0.0)
    >>> mean_agreement([Agreement(some, some), Agreement(other, some)]).region
    Statistics(mean=0.75, recall=0.75, decay=0.0)
    """
    regions, boundaries = zip(*agreements, strict=True)
    return Agreement(*(Statistics(*map(fmean, zip(*part, strict=True))) for part in (regions, boundaries)))
