"""The losses of the methods as pure functions, computed in fp32.

Under DDP each is the mean over this rank's rows against the candidates of all ranks; with the gradients that DDP
averages, that equals one process with the whole batch.
"""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sslmodules.distributed import gather, rank
from sslmodules.precision import in_full_precision

# Similarities held at a time: 16 MB of fp32. One dense matrix up to 2,048 rows and columns, blocks of rows above, so
# that the peak grows with rows x width and not with rows x columns.
BLOCK = 2**22


class _ContrastiveCrossEntropy(torch.autograd.Function):
    """Mean over rows of ``logsumexp(candidates) - positive``, and the share of rows whose positive is the largest.

    The gradient is a by-product of the softmax: it is written down in the forward pass, block by block, so that no
    (rows, columns) matrix outlives its block and none is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        positive: Tensor | None,
        target: int | Tensor,
        self_column: int | None,
        temperature: float,
        block: int,
    ) -> tuple[Tensor, Tensor]:
        n, m = len(rows), len(columns)
        scale = 1.0 / temperature
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None  # (n, d)
        grad_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None  # (m, d)
        grad_positive = rows.new_empty(n) if ctx.needs_input_grad[2] else None  # (n,)
        loss, correct = rows.new_zeros(()), rows.new_zeros(())

        step = max(1, block // m)
        for a in range(0, n, step):
            own = rows[a : a + step]  # (b, d)
            logits = (own * scale) @ columns.T  # (b, m)
            if self_column is not None:
                logits.diagonal(self_column + a).fill_(-math.inf)
            if positive is None:
                index = target[a : a + step, None]  # type: ignore[index]
                chosen = logits.gather(1, index)  # (b, 1)
            else:
                chosen = positive[a : a + step, None] * scale
            top = logits.amax(1, keepdim=True)
            correct += (chosen >= top).sum()
            p = logits.sub_(top).exp_()
            if positive is None:
                p.scatter_(1, index, 0.0)
            rest = p.sum(1, keepdim=True)  # the negatives alone, so that a loss near 0 keeps its digits
            excess = rest.log() + top - chosen
            loss += F.softplus(excess).sum()  # log(1 + exp(excess))
            if not any(ctx.needs_input_grad[:3]):
                continue
            wrong = torch.sigmoid(excess)  # (b, 1): probability of any negative
            p *= wrong * (scale / n) / rest.clamp_min(torch.finfo(rest.dtype).tiny)
            if positive is None:
                p.scatter_(1, index, wrong * (-scale / n))
            elif grad_positive is not None:
                grad_positive[a : a + step] = wrong[:, 0] * (-scale / n)
            if grad_rows is not None:
                torch.mm(p, columns, out=grad_rows[a : a + step])
            if grad_columns is not None:
                grad_columns.addmm_(p.T, own)

        ctx.save_for_backward(grad_rows, grad_columns, grad_positive)
        accuracy = correct / n
        ctx.mark_non_differentiable(accuracy)
        return loss / n, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if g is None else g * grad for g in ctx.saved_tensors), None, None, None, None)


@overload
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float = ..., *, with_accuracy: Literal[False] = ..., block: int = ...
) -> Tensor: ...
@overload
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float = ..., *, with_accuracy: Literal[True], block: int = ...
) -> tuple[Tensor, Tensor]: ...
@in_full_precision
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float = 0.1, *, with_accuracy: bool = False, block: int = BLOCK
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, section 2.1, Algorithm 1).

    Each of the 2N projections picks its other view among the 2N - 1 others. The value is the paper's mean over 2N; the
    authors' code sums the means of the two directions, which is twice that.

    Args:
        z1: (B, d) projections of the first views, normalised here.
        z2: (B, d) projections of the second views of the same images, in the same order.
        temperature: τ > 0; finite values down to 0.01 and below.
        with_accuracy: also return the share of rows whose positive is the most similar of all candidates.
        block: similarities held at a time. The peak memory is ``block`` + O(B·d) numbers and never B x B.

    Returns:
        The loss, a scalar with gradient; with ``with_accuracy`` the pair (loss, accuracy in [0, 1]).

    Raises:
        ValueError: the two are not matrices of one shape.

    >>> z = torch.eye(2)  # two orthogonal pairs of identical views
    >>> round(nt_xent(z, z, temperature=0.5).item(), 7)  # log(1 + 2·exp(-1/τ))
    0.2395448
    """
    _check_same_shape("z1", z1, "z2", z2)
    b = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2B, d)
    first = rank() * 2 * b  # column of our row 0
    partner = (torch.arange(2 * b, device=z.device) + b) % (2 * b) + first
    loss, accuracy = _ContrastiveCrossEntropy.apply(z, gather(z), None, partner, first, temperature, block)
    return (loss, accuracy) if with_accuracy else loss


@overload
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = ...,
    temperature: float = ...,
    *,
    normalize: bool = ...,
    with_accuracy: Literal[False] = ...,
    block: int = ...,
) -> Tensor: ...
@overload
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = ...,
    temperature: float = ...,
    *,
    normalize: bool = ...,
    with_accuracy: Literal[True],
    block: int = ...,
) -> tuple[Tensor, Tensor]: ...
@in_full_precision
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    with_accuracy: bool = False,
    block: int = BLOCK,
) -> Tensor | tuple[Tensor, Tensor]:
    """InfoNCE: pick the positive among the negatives (van den Oord et al. 2018, eq. 4; MoCo: He et al. 2020, eq. 1).

    Args:
        query: (B, d).
        positive: (B, d), the positive of each query.
        negatives: (K, d) shared by all queries, such as a queue (it is read in place, never copied); (B, K, d), each
            query's own; or None: the positives of the other queries, those of all ranks included (MoCo v3).
        temperature: τ > 0. CPC's form is ``temperature=1, normalize=False``.
        normalize: L2-normalise queries and positives, and negatives unless they are shared: a queue holds unit vectors.
        with_accuracy: also return the share of queries whose positive scores highest.
        block: similarities held at a time.

    Returns:
        The mean loss, a scalar with gradient; with ``with_accuracy`` the pair (loss, accuracy in [0, 1]).

    Raises:
        ValueError: shapes that do not belong together.

    >>> q = torch.eye(40)[:8]
    >>> queue = torch.eye(40)[8:]  # 32 negatives, orthogonal to every query
    >>> round(info_nce(q, q, queue, temperature=0.2).item(), 5)  # log(1 + 32·exp(-1/τ))
    0.19525
    """
    _check_same_shape("query", query, "positive", positive)
    if normalize:
        query, positive = F.normalize(query, dim=1), F.normalize(positive, dim=1)
    if negatives is None:
        target = torch.arange(len(query), device=query.device) + rank() * len(query)
        args: tuple[Any, ...] = (query, gather(positive), None, target, None, temperature, block)
    elif negatives.ndim == 2 and negatives.shape[1] == query.shape[1]:
        args = (query, negatives.to(query.dtype), (query * positive).sum(1), 0, None, temperature, block)
    elif negatives.ndim == 3 and negatives.shape[::2] == query.shape:
        own = F.normalize(negatives, dim=2) if normalize else negatives
        negative_logits = torch.einsum("bd,bkd->bk", query, own)
        logits = torch.cat([(query * positive).sum(1, keepdim=True), negative_logits], 1) / temperature  # (B, 1 + K)
        loss = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
        accuracy = (logits[:, 0] >= logits[:, 1:].amax(1)).float().mean()
        return (loss, accuracy) if with_accuracy else loss
    else:
        raise ValueError(
            f"negatives have the shape {tuple(negatives.shape)} beside queries of {tuple(query.shape)}; pass (K, d), "
            "(B, K, d) or None for the other positives of the batch"
        )
    loss, accuracy = _ContrastiveCrossEntropy.apply(*args)
    return (loss, accuracy) if with_accuracy else loss


def mutual_information_bound(loss: Tensor, candidates: int) -> Tensor:
    """Lower bound on the mutual information of the two views, in nats: I ≥ log N - loss (van den Oord et al., eq. 5).

    Args:
        loss: an InfoNCE or NT-Xent value, a mean over queries.
        candidates: N, among how many the positive was picked, itself included. The bound cannot exceed log N.

    >>> mutual_information_bound(torch.tensor(0.0), 1)
    tensor(0.)
    """
    return math.log(candidates) - loss.detach()


def _check_same_shape(name: str, a: Tensor, other: str, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"{name} has the shape {tuple(a.shape)} and {other} {tuple(b.shape)}; expected two (B, d) matrices "
            "of one shape"
        )
