"""The loss of CPC: of each prediction, how well it tells the latent that it is of from others."""

from typing import Literal

import torch
from torch import Tensor

from sslmodules.distributed import gather, rank
from sslmodules.precision import in_full_precision

Negatives = Literal["batch", "batch_excl_self", "same_sequence"]


@in_full_precision
def future_cross_entropy(
    predictions: Tensor,
    latents: Tensor,
    *,
    skip: int = 0,
    negatives: Negatives = "batch",
    draws: Tensor | None = None,
    temperature: float = 1.0,
    gather_ranks: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """InfoNCE of latents to come (van den Oord et al. 2018, eq. 4), one value a prediction.

    The k-th prediction made at time t is of the latent at ``t + skip + k`` of the same place, and every t for which
    there is one counts. A score is a dot product, of vectors that are not normalised.

    Args:
        predictions: (B, T, K, D), or (B, T, S, K, D) where S latents lie side by side at every time.
        latents: (B, T, D) or (B, T, S, D).
        skip: latents that are left out between the context and the first prediction.
        negatives: among what a latent is picked: ``"batch"``, all latents of the batch; ``"batch_excl_self"``, it and
            those of other sequences; ``"same_sequence"``, those of its own.
        draws: (B, n) in [0, 1), random: only n of these are negatives, drawn with replacement and never the latent
            itself; at the same distances from it for all predictions of a sequence. None takes all.
        temperature: τ > 0 that scores are divided by. The length of the latents makes them mean products.
        gather_ranks: take latents of all ranks for negatives, and not of this one alone.

    Returns:
        For each of the K steps the cross-entropies (B, T - skip - k, S), and whether the right latent scored highest.

    Raises:
        ValueError: shapes that do not belong together, or a sequence that is shorter than the last step is far.

    >>> latents, predictions = torch.randn(2, 9, 4), torch.zeros(2, 9, 3, 4)
    >>> terms = future_cross_entropy(predictions, latents)
    >>> [tuple(entropy.shape) for entropy, _ in terms], round(terms[0][0].mean().exp().item(), 3)
    ([(2, 8, 1), (2, 7, 1), (2, 6, 1)], 18.0)
    """
    if latents.ndim == 3:
        latents, predictions = latents[:, :, None], predictions[:, :, None]
    b, t, s, d = latents.shape
    steps = predictions.shape[3]
    if predictions.shape != (b, t, s, steps, d):
        raise ValueError(
            f"predictions have the shape {tuple(predictions.shape)} beside latents {tuple(latents.shape)}; expected "
            "(B, T, S, K, D) and (B, T, S, D)"
        )
    require_horizon(t, skip, steps)
    own = latents.flatten(1, 2)  # (B, M, D), M = T·S
    m = own.shape[1]
    sequence = torch.arange(b, device=own.device)[:, None]  # (B, 1), in which each query's latent is
    if negatives == "same_sequence":
        sequence = torch.zeros_like(sequence)
    elif gather_ranks:
        sequence = sequence + rank() * b
    others = own if negatives == "same_sequence" else (gather(own) if gather_ranks else own).flatten(0, 1)
    excluded = m if negatives == "batch_excl_self" else 1

    terms = []
    for k in range(steps):
        ahead = skip + k + 1
        queries = predictions[:, : t - ahead, :, k].flatten(1, 2) / temperature  # (B, Q, D)
        scores = queries @ others.mT  # (B, Q, N)
        n = scores.shape[2]
        target = sequence * m + torch.arange(ahead * s, m, device=own.device)  # (B, Q)
        positive = scores.gather(2, target[..., None])  # (B, Q, 1)
        if draws is not None:
            # All that may be a negative follows the latent, or its sequence, on a ring of N.
            first = (sequence + 1) * m if negatives == "batch_excl_self" else target + 1  # (B, Q) or (B, 1)
            drawn = (draws[:, : n - excluded] * (n - excluded)).long().clamp(max=n - excluded - 1)  # (B, n)
            index = (first[..., None] + drawn[:, None]) % n  # (B, Q or 1, n)
            scores = torch.cat([positive, scores.gather(2, index.expand(-1, scores.shape[1], -1))], 2)
        elif negatives == "batch_excl_self":
            mine = torch.arange(n, device=own.device) // m == sequence  # (B, N)
            scores = scores.masked_fill(mine[:, None], float("-inf")).scatter(2, target[..., None], positive)
        entropy = scores.logsumexp(2) - positive[..., 0]
        correct = positive[..., 0] >= scores.amax(2)
        terms.append((entropy.unflatten(1, (-1, s)), correct.unflatten(1, (-1, s))))
    return terms


def require_horizon(length: int, skip: int, steps: int) -> None:
    """Refuse sequences without a latent that lies as far ahead as the last prediction.

    Raises:
        ValueError: such a length.
    """
    if length <= skip + steps:
        raise ValueError(
            f"sequences of {length} latents are too short to predict {skip + steps} of them ahead; pass longer "
            f"sequences, that give {skip + steps + 1} or more, or fewer steps"
        )
