"""Label propagation: the affinity by an independent loop, the queue of frames, and videos whose masks are known."""

import math

import pytest
import torch

from sslmodules.evaluation import propagate_labels, propagate_mask
from sslmodules.evaluation.propagation import labels_of_alike


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_loop(query, keys, labels, radius, top_k, temperature):
    """Patch by patch, in Python's own numbers."""
    count, dim, height, width = keys.shape
    query, keys, labels = query.tolist(), keys.tolist(), labels.tolist()
    found = torch.zeros(len(labels[0]), height, width)
    for y in range(height):
        for x in range(width):
            seen = []
            for n in range(count):
                for v in range(height):
                    for u in range(width):
                        if max(abs(v - y), abs(u - x)) <= radius:
                            alike = sum(query[d][y][x] * keys[n][d][v][u] for d in range(dim))
                            seen.append((alike, [label[v][u] for label in labels[n]]))
            seen = sorted(seen, reverse=True)[:top_k]
            weights = [math.exp(alike / temperature) for alike, _ in seen]
            for k in range(len(found)):
                found[k, y, x] = sum(w * label[k] for w, (_, label) in zip(weights, seen, strict=True)) / sum(weights)
    return found


@pytest.mark.parametrize(("radius", "top_k", "temperature"), [(2, 5, 0.3), (1, 1, 1.0), (30, 4, 0.5), (0, 3, 0.5)])
def test_labels_are_those_of_a_loop_over_all_patches(radius, top_k, temperature):
    query, keys = random(3, 13, 14), random(2, 3, 13, 14, seed=1)  # more rows and columns than a block
    labels = random(2, 2, 13, 14, seed=2)
    found = labels_of_alike(query, keys, labels, radius, top_k, temperature)
    torch.testing.assert_close(found, by_loop(query, keys, labels, radius, top_k, temperature))
    if radius == 30:
        torch.testing.assert_close(labels_of_alike(query, keys, labels, None, top_k, temperature), found)


def test_a_frame_looks_at_the_first_and_at_the_last_before_it():
    frames, first = [random(4, 3, 5, seed=i) for i in range(6)], random(2, 3, 5, seed=9).softmax(0)
    found = list(propagate_labels(frames, first, last=2, radius=2, top_k=3, temperature=0.5, normalize=False))
    labels = [first]
    for number in range(1, 6):
        seen = [0, *range(max(1, number - 2), number)]
        context = torch.stack([frames[i] for i in seen]), torch.stack([labels[i] for i in seen])
        labels.append(labels_of_alike(frames[number], *context, 2, 3, 0.5))
    torch.testing.assert_close(torch.stack(found), torch.stack(labels))
    torch.testing.assert_close(torch.stack(found).sum(1), torch.ones(6, 3, 5))  # weights sum to 1
    alone = list(propagate_labels(frames, first, last=0, radius=2, top_k=3, temperature=0.5, normalize=False))
    torch.testing.assert_close(alone[5], labels_of_alike(frames[5], frames[0][None], first[None], 2, 3, 0.5))


def test_normalised_features_are_compared_by_direction():
    frames, first = [random(4, 3, 5, seed=i) for i in range(3)], random(2, 3, 5, seed=9)
    longer = [5 * f for f in frames]
    torch.testing.assert_close([*propagate_labels(longer, first)], [*propagate_labels(frames, first)])
    plain = [[*propagate_labels(x, first, normalize=False)][2] for x in (frames, longer)]
    assert (plain[0] - plain[1]).abs().max() > 0.01


def test_features_that_say_nothing_give_the_mean_label():
    first = random(2, 4, 6)
    labels = [*propagate_labels([torch.ones(3, 4, 6)] * 2, first, radius=None, top_k=24)][1]
    torch.testing.assert_close(labels, first.mean((1, 2), keepdim=True).expand(2, 4, 6))


def test_frames_are_read_one_by_one():
    read = []

    def frames():
        for number in range(5):
            read.append(number)
            yield random(2, 3, 3, seed=number)

    labels = propagate_labels(frames(), torch.ones(1, 3, 3))
    next(labels), next(labels)
    assert read == [0, 1]


@pytest.mark.parametrize("values", [[255], [1, 2], [3, 200, 7]])
def test_what_moves_is_tracked(values):
    patches = torch.eye(64).unflatten(1, (8, 8))  # every patch has its own feature, which it takes along
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    for place, value in enumerate(values):
        mask[4 * place : 4 * place + 4, 2:6] = value
    steps = [(0, 0), (0, 1), (1, 2), (2, 4)]
    found = propagate_mask([patches.roll(s, (1, 2)) for s in steps], mask, top_k=1)
    for one, (down, right) in zip(found, steps, strict=True):
        assert one.dtype == torch.uint8
        assert torch.equal(one, mask.roll((2 * down, 2 * right), (0, 1)))


def test_a_mask_stays_where_it_is_on_a_still_clip():
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[4:12, 4:8] = 3
    still = propagate_mask([random(64, 8, 8)] * 4, mask)
    assert all(torch.equal(one, mask) for one in still)


def test_an_object_smaller_than_a_patch_does_not_vanish():
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[5:8, 8:10] = 1  # 6 of the 16 pixels of a patch, none at its middle or its corner
    found = [*propagate_mask([random(64, 4, 4)] * 4, mask, top_k=1)][3]
    assert found[4:8, 8:12].all()
    assert found.sum() == 16  # it has become the patch


def test_a_frame_without_objects_stays_background():
    masks = [*propagate_mask([random(4, 3, 3)] * 2, torch.zeros(6, 6, dtype=torch.uint8))]
    assert not any(mask.any() for mask in masks)


def test_bad_input_is_refused():
    frames = [torch.ones(2, 3, 4), torch.ones(2, 3, 5)]
    with pytest.raises(ValueError, match="frame 1 has a map of 3x5 patches and the first labels are 3x4"):
        [*propagate_labels(frames, torch.ones(1, 3, 4))]
    for wrong in ({"last": -1}, {"top_k": 0}, {"temperature": 0}, {"radius": -1}):
        with pytest.raises(ValueError, match="expected last and radius of at least 0"):
            [*propagate_labels(frames, torch.ones(1, 3, 4), **wrong)]
