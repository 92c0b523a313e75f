"""Sets of permutations that lie far apart, the classes of the jigsaw task."""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Rule = Literal["min", "mean"]


def permutation_set(count: int, tiles: int = 9, rule: Rule = "min", seed: int = 0) -> Tensor:
    """Choose permutations that differ from each other in many places, one after the other (Noroozi & Favaro 2016).

    The first is random. Each further one is the farthest, in Hamming distance, from those chosen before, among all
    ``tiles!``: by the mean distance, which is Algorithm 1 of the paper, or by the least, ties by the mean. Among 1,000
    permutations of 9 tiles chosen by the mean, some differ in 2 places only, and tell apart nothing but two tiles that
    may look alike; chosen by the least, all differ in 5 or more, at the same mean distance of 8.01.

    Args:
        count: how many, 1 to ``tiles!``.
        tiles: length of the permutations, 1 to 9.
        rule: ``"min"``, the farthest by the least distance, or ``"mean"``, the paper's.
        seed: of the first permutation; the rest follows from it.

    Returns:
        (count, tiles) int64, each row the numbers 0 to ``tiles - 1``, on the host.

    Raises:
        ValueError: more permutations than there are, too many tiles to look at all of them, or an unknown rule.

    >>> chosen = permutation_set(6, tiles=3)
    >>> len(chosen.unique(dim=0)), (chosen[:3] != chosen[0]).sum(1)
    (6, tensor([0, 3, 3]))
    """
    if rule not in ("min", "mean"):
        raise ValueError(f"the rule is {rule!r}, expected 'min' or 'mean'")
    if not 1 <= tiles <= 9:
        raise ValueError(f"got {tiles} tiles, expected 1 to 9: all permutations of more do not fit into memory")
    everything = math.factorial(tiles)
    if not 1 <= count <= everything:
        raise ValueError(
            f"got a count of {count} permutations, expected 1 to {everything}: {tiles} tiles have no more; pass a "
            "smaller number"
        )
    return _greedy(count, tiles, rule, seed).clone()  # the caller's own: writing to it must not reach the cache


@lru_cache(maxsize=8)
def _greedy(count: int, tiles: int, rule: Rule, seed: int) -> Tensor:
    places = np.zeros((1, 1), np.uint8)  # (tiles, tiles!): column p is the p-th permutation
    for k in range(1, tiles):
        new = np.full((1, places.shape[1]), k, np.uint8)
        places = np.concatenate([np.concatenate([places[:at], new, places[at:]]) for at in range(k + 1)], 1)
    total = np.zeros(places.shape[1], np.int32)  # sum of the distances to those chosen
    least = np.full(places.shape[1], tiles, np.uint8)
    choice = int(np.random.default_rng(seed).integers(len(total)))
    chosen = []
    for _ in range(count):
        chosen.append(places[:, choice])
        distance = np.zeros_like(least)
        for place, tile in zip(places, chosen[-1], strict=True):
            distance += place != tile
        total += distance
        np.minimum(least, distance, out=least)
        total[choice] = -(2**30)  # is not chosen again
        far = total if rule == "mean" else np.where(least == least.max(), total, -(2**31))
        choice = int(far.argmax())  # the first of equals
    return torch.from_numpy(np.stack(chosen).astype(np.int64))
