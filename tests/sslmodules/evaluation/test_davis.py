"""Region J and boundary F: by hand, and beside dilation with a disk."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.morphology import disk

from sslmodules.evaluation.davis import (
    Agreement,
    Statistics,
    boundary,
    boundary_accuracy,
    mean_agreement,
    region_similarity,
    statistics,
)

EMPTY = torch.zeros(40, 40, dtype=torch.bool)
SQUARE = EMPTY.clone()
SQUARE[10:20, 10:20] = True


def test_region_similarity_by_hand():
    assert region_similarity(SQUARE, SQUARE) == 1
    assert region_similarity(SQUARE.roll(2, 1), SQUARE).item() == pytest.approx(80 / 120)
    assert region_similarity(SQUARE.roll(10, 0), SQUARE) == 0
    assert region_similarity(EMPTY, SQUARE) == 0
    assert region_similarity(EMPTY, EMPTY) == 1
    several = torch.stack([SQUARE, EMPTY, SQUARE]), torch.stack([SQUARE, EMPTY, EMPTY])
    assert region_similarity(*several).tolist() == [1, 1, 0]


def test_boundary_lies_towards_the_origin_and_not_at_the_image_s_end():
    ring = torch.zeros_like(SQUARE)
    ring[9:20, 9:20] = True
    ring[10:19, 10:19] = False
    assert torch.equal(boundary(SQUARE), ring)
    assert not boundary(~EMPTY).any()
    corner = torch.zeros(4, 5, dtype=torch.bool)
    corner[2:, 3:] = True
    assert boundary(corner).nonzero().tolist() == [[1, 2], [1, 3], [1, 4], [2, 2], [3, 2]]


def test_boundary_accuracy_by_hand():
    assert boundary_accuracy(SQUARE, SQUARE) == 1
    assert boundary_accuracy(SQUARE.roll(1, 1), SQUARE) == 1  # 1 px is ceil(0.008 · 56.6)
    # Of 40 pixels of either boundary 7 above, 7 below and 2 at the left or right are within 1 px of the other.
    assert boundary_accuracy(SQUARE.roll(5, 1), SQUARE).item() == pytest.approx(16 / 40)
    assert boundary_accuracy(SQUARE.roll(5, 1), SQUARE, tolerance=0.1) == 1  # 6 px
    assert boundary_accuracy(SQUARE.roll(15, 1), SQUARE) == 0
    assert boundary_accuracy(EMPTY, SQUARE) == boundary_accuracy(SQUARE, EMPTY) == 0
    assert boundary_accuracy(EMPTY, EMPTY) == 1
    half = EMPTY.clone()
    half[10:20, 10:15] = True  # of 30 pixels 21 are on the square's boundary and 2 beside it; 21 of 40 and 2
    assert boundary_accuracy(half, SQUARE).item() == pytest.approx(2 * 23 / (30 + 40))


def test_boundary_accuracy_is_that_of_dilation_with_a_disk():
    rng = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(3):
        masks = [gaussian_filter(rng.normal(size=(240, 320)), 15) > 0.01 * rng.normal() for _ in range(2)]
        found.append(boundary_accuracy(*map(torch.from_numpy, masks)).item())
        p, t = (boundary(torch.from_numpy(m)).numpy() for m in masks)
        near_p, near_t = (binary_dilation(b, disk(4)) for b in (p, t))  # ceil(0.008 · 400)
        precision, recall = (p & near_t).sum() / p.sum(), (t & near_p).sum() / t.sum()
        expected.append(2 * precision * recall / (precision + recall))
    assert found == pytest.approx(expected)
    assert min(expected) > 0.05


def test_quarters_share_the_frames_at_their_ends():
    values = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.3, 0.2, 0.1])
    assert statistics(values) == pytest.approx((values.mean().item(), 5 / 9, 0.8 - 0.2))
    assert statistics(values[:6]).decay == pytest.approx(0.85 - 0.55)  # borders at 0, 1.25, 2.5, 3.75 and 5
    assert statistics(values[:1]) == pytest.approx((0.9, 1.0, 0.0))


def test_objects_count_alike():
    objects = [Agreement(Statistics(v, v / 2, 0.1), Statistics(1 - v, 0.5, -0.1)) for v in (0.2, 0.6, 1.0)]
    region, accuracy = mean_agreement(objects)
    assert region == pytest.approx((0.6, 0.3, 0.1))
    assert accuracy == pytest.approx((0.4, 0.5, -0.1))
