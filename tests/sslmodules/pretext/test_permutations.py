"""The permutations lie as far apart as the sheet of figures says."""

import math

import pytest
import torch

from sslmodules.pretext.permutations import permutation_set


def distances(permutations):
    """Hamming distances of all pairs."""
    rows, columns = torch.triu_indices(len(permutations), len(permutations), offset=1)
    return (permutations[rows] != permutations[columns]).sum(1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("count", "rule", "least", "mean"),
    [(100, "min", 6, 8.080), (100, "mean", 2, 8.080), (1000, "min", 5, 8.008), (1000, "mean", 2, 8.008)],
)
def test_distances_are_those_of_the_greedy_search(count, rule, least, mean, seed):
    chosen = permutation_set(count, rule=rule, seed=seed)
    assert (chosen.shape, chosen.dtype) == ((count, 9), torch.int64)
    assert torch.equal(chosen.sort(1).values, torch.arange(9).expand(count, 9))
    assert len(chosen.unique(dim=0)) == count
    d = distances(chosen)
    assert d.min() == least
    assert d.double().mean() == pytest.approx(mean, abs=5e-4)
    assert (distances(chosen[:9]) == 9).all()
    assert count <= math.factorial(9) // math.factorial(least - 1)  # how many can lie that far apart


def test_mean_distance_of_100_is_the_optimum():
    # 100 permutations in 9 columns: a tile stands 11 or 12 times in each place, 506 pairs agree there at least.
    assert distances(permutation_set(100)).double().mean() == pytest.approx(9 * (1 - 506 / 4950))


@pytest.mark.parametrize("rule", ["min", "mean"])
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_all_permutations_can_be_had(tiles, rule):
    everything = math.factorial(tiles)
    assert len(permutation_set(everything, tiles, rule).unique(dim=0)) == everything


def test_a_larger_set_begins_with_the_smaller_and_the_seed_decides():
    assert torch.equal(permutation_set(20)[:5], permutation_set(5))
    assert torch.equal(permutation_set(5, seed=3), permutation_set(5, seed=3))
    assert not torch.equal(permutation_set(5, seed=3), permutation_set(5, seed=4))


def test_writing_to_a_set_does_not_change_the_next():
    first = permutation_set(4)
    kept = first.clone()
    first.zero_()
    assert torch.equal(permutation_set(4), kept)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 25, "tiles": 4}, "got a count of 25 permutations, expected 1 to 24: 4 tiles have no more"),
        ({"count": 0}, "expected 1 to 362880"),
        ({"count": 5, "tiles": 10}, "got 10 tiles, expected 1 to 9"),
        ({"count": 5, "rule": "max"}, "the rule is 'max', expected 'min' or 'mean'"),
    ],
)
def test_impossible_sets_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        permutation_set(**arguments)
