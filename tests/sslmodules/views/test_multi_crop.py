"""Multi-crop is DINO's recipe; masks are in blocks and of the counts that were asked for."""

import pytest
import torch

from sslmodules.views import ColorJitter, GaussianBlur, RandomGrayscale, RandomSolarize
from sslmodules.views.block_masks import block_masks, spread_block_masks
from sslmodules.views.multi_crop import MultiCrop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def part(view, kind):
    (found,) = [transform for transform in view.transforms if isinstance(transform, kind)]
    return found


def test_recipe_is_the_papers():
    crops = MultiCrop()
    for crop, size, scale in (
        (crops.global_1.transforms[0], 224, (0.4, 1.0)),
        (crops.global_2.transforms[0], 224, (0.4, 1.0)),
        (crops.local_crop, 96, (0.05, 0.4)),
    ):
        assert (crop.size, crop.scale, crop.interpolation, crop.flip) == (size, scale, "bicubic", 0.5)
    colours = (crops.global_1, crops.global_2, crops.local_colours)
    for view in colours:
        jitter = part(view, ColorJitter)
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (
            0.4,
            0.4,
            0.2,
            0.1,
            0.8,
        )
        assert part(view, RandomGrayscale).p == 0.2
    assert [part(view, GaussianBlur).p for view in colours] == [1.0, 0.1, 0.5]
    assert [part(view, RandomSolarize).p for view in colours] == [0.0, 0.2, 0.0]
    assert crops.local_crops == 8


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_two_global_and_n_local_crops_in_range(dtype):
    images = torch.randint(0, 256, (5, 3, 40, 32), dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images / 255
    crops = MultiCrop(24, 8, 3)(images, generator())
    assert [tuple(c.shape) for c in crops] == [(5, 3, 24, 24)] * 2 + [(5, 3, 8, 8)] * 3
    assert all(c.min() >= 0 and c.max() <= 1 for c in crops)
    assert len(MultiCrop(24, 8, 0)(images)) == 2
    assert MultiCrop(None, 8, 0)(images)[0].shape == images.shape


def test_generator_decides_and_no_two_crops_of_an_image_are_alike():
    images = torch.rand(4, 3, 32, 32)
    multi = MultiCrop(16, 16, 3)
    first, again = multi(images, generator()), multi(images, generator())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    stacked = torch.stack(first).flatten(2)  # (5, B, pixels)
    for i in range(4):
        assert len({tuple(crop.tolist()) for crop in stacked[:, i, :50]}) == 5


def test_local_crops_keep_to_their_image_and_show_less_of_it():
    images = torch.linspace(0, 0.75, 4).view(4, 1, 1, 1) + 0.25 * torch.rand(4, 1, 1, 1)
    ramp = (torch.arange(64.0) / 64).expand(4, 1, 64, 64) * 0.0 + images  # each image one grey of its own
    multi = MultiCrop(32, 16, 3, blur=(0, 0, 0))
    for view in (multi.global_1, multi.global_2, multi.local_colours):
        part(view, ColorJitter).p = 0.0
        part(view, RandomSolarize).p = 0.0
    for crop in multi(ramp, generator()):
        torch.testing.assert_close(crop.mean((1, 2, 3)), images.flatten())
    spans = [
        crop.amax((1, 2, 3)) - crop.amin((1, 2, 3)) for crop in multi((torch.arange(64.0) / 64).expand(4, 1, 64, 64))
    ]
    assert torch.stack(spans[2:]).mean() < 0.7 * torch.stack(spans[:2]).mean()


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="local_crops is -1"):
        MultiCrop(local_crops=-1)
    with pytest.raises(ValueError, match="three probabilities"):
        MultiCrop(blur=(0.5, 0.5))


# --- masks ----------------------------------------------------------------------------------------------------------


def test_masks_have_the_counts_asked_for_and_never_more():
    counts = torch.arange(0, 99).repeat(4)
    mask = block_masks(counts, 14, 14, generator=generator())
    got = mask.sum((1, 2))
    assert (got <= counts).all()
    share = got[counts >= 20] / counts[counts >= 20]  # a tenth of the patches, the recipe's least
    assert share.mean() > 0.99
    assert share.min() > 0.9


def test_masks_are_blocks():
    mask = block_masks(torch.full((64,), 60), 14, 14, generator=generator()).float()
    neighbours = torch.nn.functional.conv2d(
        mask[:, None], torch.tensor([[[[0, 1.0, 0], [1, 0, 1], [0, 1, 0]]]]), padding=1
    )
    touching = (neighbours[:, 0] * mask).sum() / mask.sum()
    assert touching > 2.5  # of 4; single patches at random have 4 · 60/196 = 1.2


def test_exactly_a_share_of_the_images_is_masked_over_the_whole_range_of_ratios():
    masks = spread_block_masks(64, 14, 14, generator=generator())
    counts = masks.sum((1, 2)).sort().values
    assert counts[:32].eq(0).all()
    edges = torch.linspace(0.1, 0.5, 33) * 196
    assert (counts[32:] >= 0.9 * edges[:-1] - 1).all()
    assert (counts[32:] <= edges[1:]).all()
    where = masks.any(1).any(1).nonzero().flatten()
    assert not torch.equal(where, torch.arange(32))  # shuffled
    assert torch.equal(masks, spread_block_masks(64, 14, 14, generator=generator()))
    assert not torch.equal(masks, spread_block_masks(64, 14, 14, generator=generator(1)))


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (1, 6), (37, 37)])
def test_any_grid_works(grid):
    masks = spread_block_masks(6, *grid, generator=generator())
    assert masks.shape == (6, *grid)
    assert masks.sum((1, 2)).max() <= grid[0] * grid[1] // 2


def test_shares_out_of_range_are_refused():
    with pytest.raises(ValueError, match="share is 1.5"):
        spread_block_masks(4, 8, 8, share=1.5)
    with pytest.raises(ValueError, match=r"ratio \(0.5, 0.1\)"):
        spread_block_masks(4, 8, 8, ratio=(0.5, 0.1))
    with pytest.raises(ValueError, match="4 to 4 of 2 x 2 patches were to be masked"):
        block_masks(torch.tensor([4]), 2, 2)
    assert spread_block_masks(0, 8, 8).shape == (0, 8, 8)
