"""Label propagation: masks of a video's frames from that of the first, by what the patches' features resemble.

Vondrick et al., "Tracking Emerges by Colorizing Videos", ECCV 2018, section 3.4; the protocol with a window, the k most
alike patches and a queue of frames is that of Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk",
NeurIPS 2020, and Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, section 4.2.2.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.evaluation.attention import stretched

BLOCK = 12  # side of the squares of patches whose similarities are in memory at once; as large as the usual radius


def propagate_labels(
    features: Iterable[Tensor],
    first: Tensor,
    last: int = 7,
    radius: int | None = 12,
    top_k: int = 5,
    temperature: float = 0.1,
    normalize: bool = True,
) -> Iterator[Tensor]:
    """Soft labels of every frame, from those of the first frame and of the frames before it.

    A patch takes the mean label of the ``top_k`` patches most alike to it, in the first frame and the ``last`` before
    its own, weighted by the softmax of their similarities over the temperature. Frames are read one by one and only the
    context is kept.

    Args:
        features: map (D, h, w) of each frame, such as ``method.encode_map(method.preprocess(frame))[0]``.
        first: labels (K, h, w) of the first frame, such as one-hot ones.
        last: n, how many frames before a frame it looks at besides the first; 0 looks at the first alone.
        radius: a patch looks at patches up to so many rows and columns away; None looks at whole frames.
        top_k: of more than there are, all are taken.
        temperature: above 0; 0.1 for normalised features, 0.5 for those of video colorization as they are.
        normalize: compare directions (cosine similarity) and not inner products.

    Yields:
        (K, h, w) fp32 of each frame, the first as it was given.

    Raises:
        ValueError: a map of another size than the first labels, or a number out of its range.

    >>> moving = torch.eye(4).unflatten(1, (1, 4))  # every patch has its own feature
    >>> frames = [moving, moving.roll(1, 2), moving.roll(2, 2)]
    >>> for labels in propagate_labels(frames, torch.tensor([[[1.0, 0, 0, 0]]]), top_k=1):
    ...     print(labels.tolist())
    [[[1.0, 0.0, 0.0, 0.0]]]
    [[[0.0, 1.0, 0.0, 0.0]]]
    [[[0.0, 0.0, 1.0, 0.0]]]
    """
    if last < 0 or top_k < 1 or temperature <= 0 or (radius is not None and radius < 0):
        raise ValueError(
            f"got last={last}, radius={radius}, top_k={top_k} and temperature={temperature}; expected last and radius "
            "of at least 0, top_k of at least 1 and a temperature above 0"
        )
    start: list[tuple[Tensor, Tensor]] = []  # the first frame's features and labels
    before: deque[tuple[Tensor, Tensor]] = deque(maxlen=last)
    for number, x in enumerate(features):
        if x.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"frame {number} has a map of {x.shape[1]}x{x.shape[2]} patches and the first labels are "
                f"{first.shape[1]}x{first.shape[2]}; frames and labels of one video are all of one size"
            )
        x = F.normalize(x.float(), dim=0) if normalize else x.float()
        if number == 0:
            labels = first.to(x.device, torch.float)
            start.append((x, labels))
        else:
            context = [*start, *before]
            keys, values = (torch.stack(part) for part in zip(*context, strict=True))  # (n, D, h, w), (n, K, h, w)
            labels = labels_of_alike(x, keys, values, radius, top_k, temperature)
            before.append((x, labels))
        yield labels


def labels_of_alike(
    query: Tensor, keys: Tensor, labels: Tensor, radius: int | None, top_k: int, temperature: float
) -> Tensor:
    """Mean label (K, h, w) of the patches of some frames that are most alike to each patch of another.

    Args:
        query: features (D, h, w).
        keys: features (n, D, h, w) of the frames whose labels are known.
        labels: (n, K, h, w).
        radius: see :func:`propagate_labels`, as are the next.
        top_k: over all n frames together.
        temperature: of the softmax over the k similarities.

    >>> x = torch.eye(2).unflatten(1, (1, 2))
    >>> labels_of_alike(x, x[None], torch.tensor([[[[0.0, 1.0]]]]), None, 2, 1.0)  # 1 / (1 + e) and e / (1 + e)
    tensor([[[0.2689, 0.7311]]])
    """
    height, width = query.shape[1:]
    found = labels.new_empty(labels.shape[1], height, width)
    for rows, near_rows, far_rows in _blocks(height, radius, query.device):
        for columns, near_columns, far_columns in _blocks(width, radius, query.device):
            near = keys[:, :, near_rows, near_columns].transpose(0, 1).flatten(2)  # (D, n, M)
            known = labels[:, :, near_rows, near_columns].transpose(0, 1).flatten(1)  # (K, n · M)
            block = query[:, rows, columns]  # (D, a, b)
            similarity = torch.einsum("dq,dnm->qnm", block.flatten(1), near)  # (a · b, n, M)
            far = (far_rows[:, None, :, None] | far_columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (a · b, M)
            similarity = similarity.masked_fill(far[:, None], -torch.inf).flatten(1)
            best, place = similarity.topk(min(top_k, similarity.shape[1]), sorted=False)  # (a · b, k)
            weights = (best / temperature).softmax(1)
            found[:, rows, columns] = (known[:, place] * weights).sum(2).unflatten(1, block.shape[1:])
    return found


def _blocks(length: int, radius: int | None, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of each block of rows (or columns): its own, those that one of them may look at, and which (a, m) are too far."""
    place = torch.arange(length, device=device)
    reach = length if radius is None else radius
    for start in range(0, length, BLOCK):
        own, near = slice(start, start + BLOCK), slice(max(start - reach, 0), start + BLOCK + reach)
        yield own, near, (place[own, None] - place[near]).abs() > reach


def propagate_mask(features: Iterable[Tensor], mask: Tensor, **kwargs: Any) -> Iterator[Tensor]:
    """Mask of every frame, from that of the first.

    Labels are soft while they are propagated. For the mask they are enlarged bilinearly, each is stretched to go from
    0 to 1 over the frame (as DINO's evaluation does, so that small objects do not fade), and the greatest is taken.

    Args:
        features: map (D, h, w) of each frame.
        mask: uint8 (H, W) of the first frame, larger than the maps: 0 is background, every other value an object.
        kwargs: of :func:`propagate_labels`.

    Yields:
        uint8 (H, W) of each frame, the first as it was given, on the device of the features.

    Raises:
        ValueError: as :func:`propagate_labels`.

    >>> mask = torch.tensor([[7, 7, 0, 0, 0, 0, 0, 0]] * 2, dtype=torch.uint8)
    >>> moving = torch.eye(4).unflatten(1, (1, 4))
    >>> [m[0].tolist() for m in propagate_mask([moving, moving.roll(2, 2)], mask, top_k=1)]
    [[7, 7, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 7, 7, 0, 0]]
    """
    values = torch.cat([mask.new_zeros(1), mask[mask > 0].unique()])  # (K,)
    features = iter(features)
    opening = next(features)
    one_hot = (mask == values[:, None, None]).float()  # (K, H, W)
    first = F.interpolate(one_hot[None], opening.shape[1:], mode="area")[0]  # (K, h, w), the share of each object
    values = values.to(opening.device)
    for number, labels in enumerate(propagate_labels(chain([opening], features), first, **kwargs)):
        if number == 0:
            yield mask.to(opening.device)
        else:
            enlarged = F.interpolate(labels[None], mask.shape, mode="bilinear")[0]  # (K, H, W)
            yield values[stretched(enlarged).max(0).indices]  # argmax is ten times as slow over the first dimension
