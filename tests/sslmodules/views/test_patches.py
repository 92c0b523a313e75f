"""Tiles are plain crops of a grid, and every trace that the papers hide is hidden."""

import math

import pytest
import torch
from torch import nn

from sslmodules.encoders import create_encoder
from sslmodules.views.patches import (
    Grid,
    RandomSquareCrop,
    downsample_some,
    drop_channels,
    fit_grid,
    mosaic,
    project_color,
    random_corners,
    require_tiles_fit,
    standardize,
    tiles_at,
)

DOERSCH = Grid(tile=96, gap=48, jitter=7)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_tiles(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


@pytest.mark.parametrize(
    ("side", "tile", "gap", "jitter"), [(255, 64, 21, 10), (96, 24, 8, 4), (64, 16, 5, 2), (32, 8, 2, 1), (16, 4, 1, 0)]
)
def test_default_grid_fills_the_image_and_tiles_at_most_touch(side, tile, gap, jitter):
    grid = fit_grid(side)
    assert grid == Grid(tile, gap, jitter)
    assert grid.side <= side
    assert gap - 2 * jitter in (0, 1)


def test_default_grid_fits_any_side_with_shifted_channels_too():
    for side in range(3, 300):
        shift = min(2, fit_grid(side).gap)
        grid = fit_grid(side, channel_jitter=shift)
        assert grid.side <= side
        assert grid.gap - 2 * grid.jitter - shift >= 0


def test_gaps_lie_within_twice_the_jitter_and_reach_both_ends():
    corners = random_corners(4000, 450, 420, DOERSCH, generator=generator()).view(4000, 3, 3, 2)
    down = corners[:, 1:, :, 0] - corners[:, :-1, :, 0] - 96
    right = corners[:, :, 1:, 1] - corners[:, :, :-1, 1] - 96
    for gaps in (down, right):
        assert (gaps.min(), gaps.max()) == (34, 62)
    assert (corners.amin((0, 1, 2)) == 0).all()
    assert (corners.amax((0, 1, 2)) == torch.tensor([450 - 96, 420 - 96])).all()


def test_each_tile_has_a_jitter_of_its_own():
    corners = random_corners(500, 398, 398, DOERSCH, generator=generator())  # no room left: jitter alone
    shifts = (corners - corners.float().mean(0)).flatten(1).T  # (18, 500)
    assert (torch.corrcoef(shifts) - torch.eye(18)).abs().max() < 0.2


def test_channels_are_shifted_each_by_itself():
    grid = Grid(tile=4, gap=2, jitter=0, channel_jitter=2)
    corners = random_corners(300, grid.side, grid.side, grid, channels=3, generator=generator())
    assert corners.shape == (300, 9, 3, 2)
    shifts = corners - corners.amin(0)
    assert shifts.unique().tolist() == [0, 1, 2]
    assert (torch.corrcoef(shifts.float().flatten(1).T) - torch.eye(54)).abs().max() < 0.3
    assert (corners.amax((0, 1, 2)) <= grid.side - 4).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fit_grid(397, 96, 48, 7), r"tiles of 96 px with gaps of 48.* need 398 px and the images have 397"),
        (lambda: random_corners(1, 500, 397, DOERSCH), r"need 398 px and the images have 397; pass a smaller tile"),
        (lambda: fit_grid(16, channel_jitter=5), r"channels by 5, need 19 px and the images have 16"),
        (lambda: fit_grid(9, tile=0), "expected a tile of 1 px or more"),
        (lambda: fit_grid(64, jitter=-1), "the others not negative"),
    ],
)
def test_grids_that_do_not_fit_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_tiles_are_plain_crops(dtype):
    images = (random_tiles(3, 2, 30, 41) * 255).to(dtype)
    corners = random_corners(3, 30, 41, Grid(5, 3, 2), generator=generator())
    tiles = tiles_at(images, corners, 5)
    assert (tiles.shape, tiles.dtype) == ((3, 9, 2, 5, 5), dtype)
    for b in range(3):
        for n in range(9):
            top, left = corners[b, n].tolist()
            assert torch.equal(tiles[b, n], images[b, :, top : top + 5, left : left + 5])


def test_tiles_with_shifted_channels_are_plain_crops_of_each_channel():
    images = random_tiles(2, 3, 32, 28)
    corners = random_corners(2, 32, 28, Grid(6, 2, 1, channel_jitter=2), generator=generator())
    tiles = tiles_at(images, corners, 6)
    for b in range(2):
        for n in range(9):
            for c in range(3):
                top, left = corners[b, n, c].tolist()
                assert torch.equal(tiles[b, n, c], images[b, c, top : top + 6, left : left + 6])


@pytest.mark.parametrize("corner", [[-1, 0], [0, -1], [5, 0], [0, 6]])
def test_tiles_beyond_the_image_are_refused(corner):
    with pytest.raises(ValueError, match="reach beyond the images of 8 x 9"):
        tiles_at(torch.zeros(1, 1, 8, 9), torch.tensor([[corner]]), tile=4)


@pytest.mark.parametrize("shape", [(1, 9, 2), (2, 9, 3), (2, 9, 1, 2), (2, 2)])
def test_corners_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(top, left\), \(2, N, 2\) or \(2, N, 3, 2\)"):
        tiles_at(torch.zeros(2, 3, 8, 8), torch.zeros(shape, dtype=torch.long), tile=4)


def test_standardised_tiles_have_mean_0_and_std_1_and_constant_ones_are_0():
    tiles = standardize(random_tiles(4, 9, 3, 8, 8) * 0.01 + 0.7)
    torch.testing.assert_close(tiles.mean((3, 4)), torch.zeros(4, 9, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(tiles.std((3, 4), correction=0), torch.ones(4, 9, 3), atol=1e-4, rtol=0)
    for level in (0.0, 0.1, 1 / 3, 1.0):
        assert standardize(torch.full((2, 3, 7, 7), level)).abs().max() < 1e-2


def test_one_grey_level_in_one_pixel_is_no_constant_tile():
    tile = torch.full((1, 16, 16), 100 / 255)
    tile[0, 3, 5] = 101 / 255
    torch.testing.assert_close(standardize(tile).std(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_projection_is_the_papers_matrix():
    unit = torch.eye(3)[..., None, None]  # (3, 3, 1, 1): red, green, blue
    b = project_color(unit).flatten(1).T
    a = torch.tensor([-1.0, 2.0, -1.0])
    torch.testing.assert_close(b, torch.eye(3) - torch.outer(a, a) / (a @ a))
    expected = torch.tensor([[0.8333, 0.3333, -0.1667], [0.3333, 0.3333, 0.3333], [-0.1667, 0.3333, 0.8333]])
    torch.testing.assert_close(b, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(b @ b, b)
    torch.testing.assert_close(b @ a, torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.linalg.matrix_rank(b, atol=1e-5) == 2
    grey = random_tiles(2, 9, 1, 4, 4).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(project_color(grey), grey)


def test_dropping_keeps_one_channel_and_leaves_faint_noise_in_the_others():
    tiles = random_tiles(4, 9, 3, 32, 32) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1) + 5
    keep = torch.randint(3, (4, 9), generator=generator(1))
    dropped = drop_channels(tiles, keep, seed=3)
    for b in range(4):
        for n in range(9):
            kept = int(keep[b, n])
            assert torch.equal(dropped[b, n, kept], tiles[b, n, kept])
            noise = torch.stack([dropped[b, n, c] for c in range(3) if c != kept])
            faint = tiles[b, n, kept].std() / 100
            assert noise.std() == pytest.approx(faint.item(), rel=0.1)
            assert noise.mean().abs() < faint * 0.2
    assert torch.equal(dropped, drop_channels(tiles, keep, seed=3))
    assert not torch.equal(dropped, drop_channels(tiles, keep, seed=4))


@pytest.mark.parametrize("function", [project_color, lambda x: drop_channels(x, torch.zeros(1, 9), 0)])
def test_colours_are_those_of_rgb_alone(function):
    with pytest.raises(ValueError, match="got 4 channels; expected red, green and blue"):
        function(torch.zeros(1, 9, 4, 8, 8))


def test_some_tiles_lose_their_detail_and_keep_their_mean():
    tiles = torch.tensor([0.0, 1.0]).repeat(16).expand(64, 9, 1, 32, 32)  # stripes of one pixel
    out = downsample_some(tiles.clone(), 1 / 3, generator())
    changed = (out != tiles).flatten(2).any(2)
    assert changed.float().mean() == pytest.approx(1 / 3, abs=0.06)
    assert torch.equal(out[~changed], tiles[~changed])
    shrunk = out[changed]
    assert shrunk.std() < 0.75 * tiles.std()
    torch.testing.assert_close(shrunk.mean((2, 3)), torch.full_like(shrunk[..., 0, 0], 0.5), atol=0.05, rtol=0)


def test_values_beyond_0_and_1_survive_downsampling():
    out = downsample_some(torch.full((2, 9, 3, 16, 16), -0.25), 1.0, generator())
    torch.testing.assert_close(out, torch.full((2, 9, 3, 16, 16), -0.25))


@pytest.mark.parametrize(("tile", "p"), [(10, 1.0), (4, 1.0), (32, 0.0)])
def test_small_tiles_keep_their_pixels(tile, p):
    tiles = random_tiles(2, 9, 3, tile, tile)
    assert torch.equal(downsample_some(tiles.clone(), p, generator()), tiles)


def test_the_least_side_after_downsampling_is_10_px():
    sides = set()
    for seed in range(60):
        tiles = torch.tensor([0.0, 1.0]).repeat(6).expand(1, 1, 1, 12, 12).clone()
        sides.add(round(downsample_some(tiles, 1.0, generator(seed)).std().item(), 4))
    assert len(sides) == 2  # 10 and 11 px


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (40, 40)])
def test_square_crop_is_square_and_keeps_the_aspect_ratio(height, width):
    ramp = torch.arange(float(width)).div(width).expand(64, 1, height, width)
    crop = RandomSquareCrop(None, min_scale=0.2)
    params = crop.draw(64, height, width, generator())
    assert torch.equal(params["boxes"][:, 2], params["boxes"][:, 3])
    assert crop(ramp).shape == (64, 1, 30 if height != width else 40, 30 if height != width else 40)
    assert RandomSquareCrop(17)(ramp).shape == (64, 1, 17, 17)


def test_mosaic_lays_tiles_out_row_by_row_with_white_between():
    tiles = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, 9, 3, 2, 2)
    picture = mosaic(tiles, gap=1, value=-1.0)
    assert picture.shape == (2, 3, 8, 8)
    assert picture[1, 2, ::3, ::3].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert (picture[..., 2::3, :] == -1).all()
    assert (picture[..., :, 2::3] == -1).all()
    assert (picture != -1).sum() == 2 * 9 * 3 * 4
    with pytest.raises(ValueError, match="got 8 tiles, which make no square"):
        mosaic(tiles[:, :8])


def test_encoders_that_cannot_look_at_the_tiles_are_refused():
    vit = create_encoder("vit_tiny_patch16_224", image_size=64, depth=1)
    require_tiles_fit(vit, 32)
    require_tiles_fit(nn.Conv2d(3, 8, 3), 5)
    with pytest.raises(ValueError, match="tiles are 20x20 px and the encoder cuts patches of 16x16; pass a tile"):
        require_tiles_fit(vit, 20)
    fixed = create_encoder("moco_v3_vit_small", image_size=64, depth=1)
    require_tiles_fit(fixed, 64)
    with pytest.raises(ValueError, match="takes images of 64x64 only"):
        require_tiles_fit(fixed, 16)


def test_standardising_carries_gradient_and_is_exact_under_autocast():
    x = random_tiles(2, 3, 8, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = standardize(project_color(x))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, standardize(project_color(x)))
    out.square().sum().backward()
    assert math.isfinite(x.grad.sum())
