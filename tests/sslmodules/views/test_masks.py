"""Where masks hide, how much, and that each sample has its own."""

import pytest
import torch

from sslmodules.views import masks
from sslmodules.views.masks import center_mask, overlap_weights, random_blocks_mask, random_region_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


RANDOM = {
    "blocks": lambda b, h, w, seed=0: random_blocks_mask(b, h, w, generator=seeded(seed)),
    "region": lambda b, h, w, seed=0: random_region_mask(b, h, w, seeded(seed)),
}
each_random = pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM)


def coverage(mask: torch.Tensor) -> torch.Tensor:
    return mask.double().mean((1, 2, 3))


def test_center_hides_the_papers_64_of_128_px():
    expected = torch.zeros(2, 1, 128, 128)
    expected[:, :, 32:96, 32:96] = 1
    assert torch.equal(center_mask(2, 128, 128).float(), expected)


def test_center_keeps_a_band_visible_where_it_overlaps():
    expected = torch.zeros(2, 1, 128, 128)
    expected[:, :, 36:92, 36:92] = 1
    assert torch.equal(center_mask(2, 128, 128, overlap=4).float(), expected)


def test_center_of_odd_and_oblong_images_has_the_share():
    mask = center_mask(1, 9, 20, share=1 / 3)
    rows, columns = mask[0, 0].any(1).nonzero().flatten(), mask[0, 0].any(0).nonzero().flatten()
    assert rows.tolist() == [3, 4, 5]
    assert columns.tolist() == list(range(6, 13))
    assert mask.sum() == 21


@pytest.mark.parametrize("band", [0.0, 1.0, 10.0])
def test_weights_of_the_papers_hole_sum_to_the_sheets_figure(band):
    for weight in (0.999, 1.0):
        map_ = weight * overlap_weights(center_mask(1, 128, 128, overlap=4), 4, band)
        assert map_.sum().item() == pytest.approx(weight * (3136 + 960 * band))
    assert overlap_weights(center_mask(1, 128, 128, overlap=4), 4).sum() == 12736


def test_the_band_is_the_part_of_the_hole_that_stays_visible():
    hole, hidden = center_mask(1, 32, 32), center_mask(1, 32, 32, overlap=2)
    weights = overlap_weights(hidden, 2)
    assert torch.equal(weights == 10, (hole - hidden).bool())
    assert torch.equal(weights == 1, hidden.bool())
    assert torch.equal(weights == 0, ~hole.bool())


def test_the_band_surrounds_any_shape_and_ends_at_the_border():
    mask = torch.zeros(1, 1, 4, 5)
    mask[0, 0, 0, 0] = mask[0, 0, 0, 1] = 1
    band = [[1, 1, 10, 0, 0], [10, 10, 10, 0, 0], [0] * 5, [0] * 5]
    assert overlap_weights(mask, 1)[0, 0].tolist() == band
    assert torch.equal(overlap_weights(mask, 0), mask)
    assert overlap_weights(mask.double(), 1).dtype == torch.float64


@each_random
@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (40, 25), (4, 4)])
def test_random_masks_are_0_and_1_and_keep_to_their_coverage(draw, height, width):
    mask = draw(200, height, width)
    assert mask.shape == (200, 1, height, width)
    assert set(mask.unique().tolist()) == {0, 1}
    low, high = (0.2, 0.3) if draw is RANDOM["region"] else (1 / (height * width), 0.25)
    assert coverage(mask).min() >= low
    assert coverage(mask).max() <= high


@each_random
def test_random_masks_differ_between_samples_and_reach_every_pixel(draw):
    mask = draw(3000, 32, 32)
    assert len(mask[:20].flatten(1).unique(dim=0)) == 20
    assert mask.float().mean(0).min() > 0
    assert mask.float().mean(0).max() < 0.5


@each_random
def test_random_masks_are_those_of_their_seed(draw):
    assert torch.equal(draw(8, 24, 24), draw(8, 24, 24))
    assert not torch.equal(draw(8, 24, 24), draw(8, 24, 24, seed=1))


def test_one_block_is_a_square_with_a_side_of_its_own_anywhere():
    mask = random_blocks_mask(400, 16, 20, blocks=1, generator=seeded())[:, 0]
    rows, columns = mask.amax(2), mask.amax(1)  # (B, H), (B, W)
    side = rows.sum(1)
    assert torch.equal(side, columns.sum(1))
    assert torch.equal(mask, rows[:, :, None] * columns[:, None])  # a full rectangle, in one piece
    assert ((rows.diff(dim=1).view(torch.int8) == 1).sum(1) + rows[:, 0] == 1).all()
    assert side.unique().tolist() == [4, 5, 6, 7, 8]  # 8² = 64 of 320 pixels; 9² = 81 are more than a quarter
    assert rows[:, 0].any()
    assert rows[:, -1].any()
    assert columns[:, 0].any()
    assert columns[:, -1].any()


def test_blocks_overlap_at_times_and_fill_their_coverage_at_most():
    area = random_blocks_mask(500, 32, 32, generator=seeded()).sum((1, 2, 3))
    assert area.max() <= 256
    assert area.min() < 4 * 4**2 + 64  # four of the smallest, or overlapping ones
    assert area.max() > 200


def test_regions_are_crops_of_the_one_pattern_at_all_positions_that_fit():
    pattern, corners = masks._region_pattern(16, 16)
    columns = pattern.shape[1] - 15
    fits = [
        r * columns + c
        for r in range(pattern.shape[0] - 15)
        for c in range(columns)
        if 0.2 <= pattern[r : r + 16, c : c + 16].float().mean() <= 0.3
    ]
    assert corners.tolist() == fits
    drawn = random_region_mask(3, 16, 16, seeded())
    index = corners[torch.randint(len(corners), (3,), generator=seeded())].tolist()
    for mask, i in zip(drawn, index, strict=True):
        r, c = divmod(i, columns)
        assert torch.equal(mask[0], pattern[r : r + 16, c : c + 16])


def test_regions_keep_their_proportion_to_the_image():
    """Edges are as long in a mask of 128 px as in one of 32, measured in sides of the image."""
    edges = []
    for side in (32, 128):
        mask = random_region_mask(200, side, side, seeded()).float()
        edges.append((mask.diff(dim=3).abs().sum() + mask.diff(dim=2).abs().sum()).item() / len(mask) / side)
    assert edges[0] == pytest.approx(edges[1], rel=0.1)


def test_region_pattern_is_small_made_once_and_takes_no_random_number():
    masks._region_pattern.cache_clear()
    state = torch.get_rng_state()
    with torch.inference_mode():  # as in validation; training goes on with what it left
        pattern, corners = masks._region_pattern(128, 128)
    assert torch.equal(torch.get_rng_state(), state)
    assert masks._region_pattern(128, 128)[0] is pattern
    assert pattern.nbytes + corners.nbytes < 4e6
    scale = torch.ones(1, requires_grad=True)
    (random_region_mask(2, 128, 128).float() * scale).sum().backward()
    assert scale.grad > 0


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: center_mask(1, 16, 16, share=0), "share is 0 .* expected 0 < share < 1"),
        (lambda: center_mask(1, 16, 16, share=1.0), "expected 0 < share < 1"),
        (lambda: center_mask(1, 16, 16, share=0.99), "hides 16 x 16 px; expected at least one and not all"),
        (lambda: center_mask(1, 16, 16, overlap=-1), "overlap -1; expected .* overlap >= 0"),
        (lambda: center_mask(1, 16, 16, overlap=4), "less 4 px on each side, hides 0 x 0 px.*smaller overlap"),
        (lambda: random_blocks_mask(1, 16, 16, blocks=0), "blocks is 0 .*at least 1 block"),
        (lambda: random_blocks_mask(1, 16, 16, coverage=1.0), "coverage 1.0; expected"),
        (lambda: random_blocks_mask(1, 3, 3), "4 blocks within 0.25 of 3 x 3 px are smaller than a pixel"),
        (lambda: random_region_mask(1, 3, 16), "images are 3 x 16 px; regions need at least 4 x 4"),
    ],
)
def test_what_cannot_be_hidden_is_refused_with_a_sentence(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()
