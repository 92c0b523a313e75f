"""The losses of DINO, iBOT and DINOv2 as pure functions, computed in fp32 (fp64 stays).

Each is a mean over samples with normalisers of their own, so that the mean over ranks is the loss of the whole batch;
what needs statistics of the whole batch (Sinkhorn) sums them over ranks.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.distributed import all_reduced, gather, rank
from sslmodules.precision import in_full_precision


@in_full_precision
def dino_loss(student: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of the student's crops under the teacher's, over all pairs of different crops (DINO, eq. 3).

    Args:
        student: (V, B, K) scores of V crops of each image, the G global ones first.
        targets: (G, B, K) the teacher's probabilities for the global crops, without gradient; over K they sum to 1.
        temperature: τ_s of the student.

    Returns:
        The mean over the batch and the G·V - G pairs, a scalar: at K equal probabilities on both sides log K.

    Raises:
        ValueError: another shape, or no pair of different crops.

    >>> uniform = torch.full((2, 1, 4), 0.25)
    >>> round(dino_loss(torch.zeros(3, 1, 4), uniform).exp().item(), 5)
    4.0
    """
    if student.ndim != 3 or targets.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"the student's scores are {tuple(student.shape)} and the targets {tuple(targets.shape)}; expected "
            "(V, B, K) and (G, B, K)"
        )
    (g, b, _), v = targets.shape, len(student)
    if v < max(g, 2):
        raise ValueError(
            f"there are {v} crops for the student and {g} for the teacher; expected at least 2 and as many"
        )
    logits = student / temperature
    # Σ -p·log softmax(x) = logsumexp(x) - p·x, since p sums to 1: no third (V, B, K) tensor is kept for the backward
    # pass.
    agreement = torch.einsum("gbk,vbk->bgv", targets, logits).sum(0)  # (G, V)
    cross_entropy = logits.logsumexp(2).sum(1) - agreement  # (G, V), summed over the batch
    return cross_entropy.masked_fill(torch.eye(g, v, dtype=torch.bool, device=logits.device), 0).sum() / (
        b * (v - 1) * g
    )


@in_full_precision
def ibot_loss(student: Tensor, targets: Tensor, mask: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy at the masked patches (iBOT, Zhou et al. 2022, eq. 2; normalised as DINOv2's code does).

    Args:
        student: (M, K) scores of the M masked patches, in the order of ``mask``'s entries, row by row.
        targets: (M, K) the teacher's probabilities for the same patches, without gradient.
        mask: (I, N) bool, the masked patches of I images, M in all.
        temperature: τ_s of the student.

    Returns:
        The mean over each image's masked patches, summed over images and divided by all I, masked or not; a scalar.

    Raises:
        ValueError: scores or targets of another number of patches than are masked.

    >>> mask = torch.tensor([[True, True, False], [False, False, False]])
    >>> round(ibot_loss(torch.zeros(2, 4), torch.full((2, 4), 0.25), mask).item() / torch.tensor(4.0).log().item(), 5)
    0.5
    """
    weight = (1 / mask.sum(1, keepdim=True).clamp(min=1)).expand(mask.shape)[mask] / len(mask)  # (M,)
    if student.shape != targets.shape or len(student) != len(weight):
        raise ValueError(
            f"the student's scores are {tuple(student.shape)} and the targets {tuple(targets.shape)} for {len(weight)} "
            "masked patches; expected (M, K) both"
        )
    logits = student / temperature
    cross_entropy = logits.logsumexp(1) - (targets * logits).sum(1)  # (M,), as in dino_loss
    return (cross_entropy * weight.to(cross_entropy, non_blocking=True)).sum()


@in_full_precision
def koleo(features: Tensor, *, gather_ranks: bool = False, eps: float = 1e-8) -> Tensor:
    """KoLeo: spreads features by a differential entropy's estimate (Sablayrolles et al. 2019, section 3.3).

    ``-mean log d_i``, with d_i the distance from feature i to its nearest neighbour in the batch, on the unit sphere.

    Args:
        features: (B, D), normalised here.
        gather_ranks: look for neighbours among the features of all ranks, which the authors do not.
        eps: added to each coordinate's difference and to the distance, so that equal features give a finite loss.

    Returns:
        A scalar with gradient, 0 where a feature has no neighbour (B = 1).

    >>> round(koleo(torch.eye(4)).item(), 6)  # -log √2
    -0.346574
    """
    x = F.normalize(features, dim=1, eps=eps)
    others = gather(x) if gather_ranks else x  # (W·B, D)
    if len(others) < 2:
        return x.sum() * 0
    with torch.no_grad():
        similarity = x @ others.T  # (B, W·B)
        similarity.diagonal(rank() * len(x) if gather_ranks else 0).fill_(-2)
        nearest = similarity.argmax(1)
    return -(F.pairwise_distance(x, others[nearest], eps=eps) + eps).log().mean()


@torch.no_grad()
@in_full_precision
def sinkhorn_knopp(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assign samples to prototypes so that each prototype gets about the same share (SwAV, Caron et al. 2020).

    In turn, every prototype's total is made equal, then every sample's is made 1. Prototypes' totals run over the
    samples of all ranks, which may have different numbers of them.

    Args:
        scores: (B, K) the teacher's.
        temperature: τ_t, above 0.
        iterations: 3 in SwAV and DINOv2.

    Returns:
        (B, K) probabilities, each row summing to 1; columns to B / K only about.

    >>> sinkhorn_knopp(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), temperature=1.0)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    scores = scores / temperature
    # A common factor changes nothing; without the largest score no exponential overflows.
    top = scores.amax() if len(scores) else scores.new_full((), -torch.inf)
    q = (scores - all_reduced(top, "max")).exp()  # (B, K)
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(iterations):
        q /= all_reduced(q.sum(0)).clamp_(min=tiny)
        q /= q.sum(1, keepdim=True).clamp_(min=tiny)
    return q


@in_full_precision
def gram_loss(student: Tensor, anchor: Tensor) -> Tensor:
    """Mean square difference of the patches' similarities (DINOv3's Gram anchoring, Siméoni et al. 2025, section 4).

    Only how the patches of an image relate to each other is held, so features may turn and grow.

    Args:
        student: (B, N, D) patch features, normalised here.
        anchor: (B, N, D') those of the Gram teacher, without gradient.

    Returns:
        A scalar with gradient, 0 for features that are equal, rotated or scaled patch by patch.

    Raises:
        ValueError: other images or another number of patches.

    >>> x = torch.randn(2, 5, 3)
    >>> round(gram_loss(x, -2 * x).item(), 6)
    0.0
    """
    if student.shape[:2] != anchor.shape[:2]:
        raise ValueError(
            f"the features are {tuple(student.shape)} and {tuple(anchor.shape)}; expected (B, N, D) of the same patches"
        )
    ours, theirs = F.normalize(student, dim=2), F.normalize(anchor, dim=2)
    return F.mse_loss(ours @ ours.mT, theirs @ theirs.mT)


@torch.no_grad()
@in_full_precision
def entropy(probabilities: Tensor) -> Tensor:
    """Mean over all rows of the entropy over the last dimension, in nats: log K at its highest, 0 at its lowest.

    >>> round(entropy(torch.full((3, 4), 0.25)).exp().item(), 5)
    4.0
    """
    return torch.special.entr(probabilities).sum(-1).mean()
