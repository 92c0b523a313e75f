"""Measures of a representation, as pure functions on features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.precision import in_full_precision

# Similarities that knn_scores holds at a time: 256 MB.
SIMILARITIES = 2**26


@in_full_precision
def knn_scores(
    queries: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes of the weighted k-nearest-neighbour classifier (Wu et al. 2018; DINO: Caron et al. 2021, appendix).

    Each of the k most similar bank entries by cosine votes for its classes with ``exp(similarity / temperature)``. The
    neighbours are exact, and found for so many queries at a time as fit into memory.

    Args:
        queries: (B, D); normalised here.
        bank: (N, D); normalised here.
        labels: (N,) classes of the bank, of which entries below 0 have none and do not vote; or (N, C) of 0 and 1,
            where an entry may have several.
        num_classes: C.
        k: neighbours; at most N are taken.
        temperature: above 0.

    Returns:
        (B, C) shares of the votes in [0, 1]; ``argmax(1)`` is the prediction where there is one class.

    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_scores(torch.tensor([[2.0, 1.0]]), bank, torch.tensor([0, 1]), num_classes=2, k=1).argmax(1)
    tensor([0])
    """
    bank = F.normalize(bank, dim=1)
    rows = max(1, SIMILARITIES // max(1, len(bank)))
    return torch.cat([_votes(part, bank, labels, num_classes, k, temperature) for part in queries.split(rows)])


def _votes(queries: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Shares of the votes (b, C), of so few queries that their similarities to the normalised bank fit into memory."""
    similarity = F.normalize(queries, dim=1) @ bank.T  # (b, N)
    if labels.ndim == 1:
        similarity.masked_fill_(labels < 0, float("-inf"))
    nearest, index = similarity.topk(min(k, len(bank)), dim=1)  # (b, k)
    # Relative to the nearest: the ranking is the same and small temperatures stay finite.
    weights = ((nearest - nearest[:, :1]) / temperature).exp().nan_to_num(0.0)
    weights /= weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    if labels.ndim == 2:
        return torch.einsum("bk,bkc->bc", weights, labels[index].to(weights))
    return weights.new_zeros(len(queries), num_classes).scatter_add_(1, labels.clamp_min(0)[index], weights)


@in_full_precision
def rank_me(features: Tensor, eps: float = 1e-7) -> Tensor:
    """Effective rank of features: the exponential of the entropy of their singular values (Garrido et al. 2023, eq. 1).

    Args:
        features: (N, D).
        eps: added to the normalised singular values.

    Returns:
        A scalar from 1 (collapsed onto a line) to min(N, D).

    >>> round(rank_me(torch.eye(8)).item(), 2)
    8.0
    """
    values = torch.linalg.svdvals(features)
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return torch.exp(-(p * p.log()).sum())


@in_full_precision
def spread(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features over the batch, times √D: about 1 when spread over the sphere.

    Args:
        features: (N, D). The mean over the D dimensions is taken (SimSiam: Chen & He 2021, section 4.1).

    Returns:
        A scalar; 0 is a collapse onto one point.

    >>> spread(torch.ones(4, 3)).item()
    0.0
    """
    return F.normalize(features, dim=1).std(0, correction=0).mean() * features.shape[1] ** 0.5
