"""Relative patch location: its labels, and that the shortcuts its authors found stay closed."""

import math

import pytest
import torch
from runs import learned
from torch import nn
from torch.nn import functional as F

from sslmodules.pretext.relative_patch import RelativePatch, neighbour_pairs
from sslmodules.tiles import GREEN, RED
from sslmodules.views import gaussian_blur
from sslmodules.views.patches import project_color, standardize

SMALL = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "embed_dim": 16, "hidden_dim": 32}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def real(count=4, height=64, width=64, channels=3):
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator())


def small(**kwargs):
    torch.manual_seed(0)
    return RelativePatch(**{**SMALL, **kwargs})


@pytest.mark.parametrize(("cells", "count"), [(2, 12), (3, 40), (4, 84)])
def test_neighbours_see_each_other_from_opposite_sides(cells, count):
    pairs, labels = neighbour_pairs(cells)
    assert len(pairs) == len(labels) == len(pairs.unique(dim=0)) == count
    label = {tuple(pair): k for pair, k in zip(pairs.tolist(), labels.tolist(), strict=True)}
    assert all(label[q, p] == 7 - k for (p, q), k in label.items())


def test_labels_are_row_by_row_over_the_offsets():
    pairs, labels = neighbour_pairs(3)
    offsets = [(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)]  # (dx, dy) of q as seen from p
    for (p, q), label in zip(pairs.tolist(), labels.tolist(), strict=True):
        assert (q % 3 - p % 3, q // 3 - p // 3) == offsets[label]
    centred = pairs[:, 0] == 4
    assert pairs[centred, 1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert labels[centred].tolist() == list(range(8))


@pytest.mark.parametrize(("pairs", "count"), [("centre", 8), ("all", 40)])
def test_zeroed_classifier_has_the_loss_of_guessing(pairs, count):
    method = small(pairs=pairs)
    nn.init.zeros_(method.classifier[-1].weight)
    nn.init.zeros_(method.classifier[-1].bias)
    views = method.make_views(real())
    logits = method.place(views[0], method.first, method.second)
    assert logits.shape == (4, count, 8)
    torch.testing.assert_close(method.loss(views)["loss"].item(), math.log(8), rtol=1e-6, atol=0)


def test_pairs_are_concatenated_in_order_and_each_tile_is_encoded_once():
    method, seen = small(pairs="all").eval(), []
    method.encoder.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    (tiles,) = method.make_views(real(2))
    logits = method.place(tiles, method.first, method.second)
    ((eaten, h),) = seen
    assert torch.equal(eaten, tiles.flatten(0, 1))
    z = method.embedding(h).view(2, 9, 16)
    for k, (p, q) in enumerate(neighbour_pairs()[0].tolist()):
        torch.testing.assert_close(logits[:, k], method.classifier(torch.cat([z[:, p], z[:, q]], 1)))


@pytest.mark.parametrize("aberration", ["project", "drop", None])
def test_tiles_are_standardised_and_each_has_its_own_colours(aberration):
    (tiles,) = small(aberration=aberration, grayscale=0.0).make_views(real(8))
    assert (tiles.shape, tiles.dtype) == ((8, 9, 3, 16, 16), torch.float32)
    kept = tiles.std((3, 4), correction=0) > 0.5
    torch.testing.assert_close(tiles.mean((3, 4)), torch.zeros(8, 9, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(tiles.std((3, 4), correction=0)[kept], torch.ones(int(kept.sum())), atol=1e-3, rtol=0)
    if aberration == "drop":
        assert (kept.sum(2) == 1).all()
        channel = kept.float().argmax(2)
        assert all(len(image.unique()) > 1 for image in channel)  # not one for all tiles of an image
    else:
        assert kept.all()
    if aberration == "project":  # green is what red and blue say
        flat = tiles.permute(2, 0, 1, 3, 4).flatten(1, 2)  # (3, 72, t, t)
        red, green, blue = flat.flatten(2)
        for r, g, b in zip(red, green, blue, strict=True):
            rest = torch.linalg.lstsq(torch.stack([r, b], 1), g[:, None]).solution
            torch.testing.assert_close(torch.stack([r, b], 1) @ rest, g[:, None], atol=1e-3, rtol=0)


def test_a_run_without_defences_shows_the_plain_tiles():
    ramp = torch.arange(48.0).div(48).expand(2, 1, 48, 48)
    method = small(aberration=None, grayscale=0, downsample=0, min_scale=1.0, jitter=0, in_channels=1)
    method.view.transforms[0].flip = 0.0
    (tiles,) = method.make_views(ramp)
    torch.testing.assert_close(tiles, standardize(ramp[:, None, :, :12, :12]).expand(2, 9, 1, 12, 12))


@pytest.mark.parametrize(
    ("shape", "size", "tile"), [((64, 64), None, 16), ((48, 80), None, 12), ((40, 30), 64, 16), ((16, 16), None, 4)]
)
def test_any_loaders_images_give_square_grids(shape, size, tile):
    method = small(size=size)
    images = real(2, *shape)
    method.check_images(images)
    (tiles,) = method.make_views(images)
    assert tiles.shape == (2, 9, 3, tile, tile)
    assert method(images).shape == (2, 16)


def test_whole_images_are_encoded_as_tiles_are():
    method, images = small(), real(3, 40, 40)
    expected = standardize(project_color(images / 255))
    torch.testing.assert_close(method.preprocess(images), expected)
    torch.testing.assert_close(method(images), method.encoder(expected))
    torch.testing.assert_close(small(aberration=None).preprocess(images), standardize(images / 255))
    assert small(size=32).preprocess(images).shape == (3, 3, 32, 32)


def test_drawing_depends_on_the_generator_alone():
    for aberration in ("project", "drop"):
        method = small(aberration=aberration)
        made = []
        for seed in (0, 0, 1):
            method.generator = generator(seed)
            made.append(method.make_views(real())[0])
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])


def test_a_transformer_learns_from_tiles_that_its_patches_divide():
    vit = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    method = small(encoder="vit_tiny_patch16_224", encoder_args=vit, size=64)
    method.check_images(real())
    out = method.loss(method.make_views(real()))
    out["loss"].backward()
    assert method.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    assert method(real()).shape == (4, 24)
    with pytest.raises(ValueError, match="tiles are 14x14 px and the encoder cuts patches of 4x4; pass a tile"):
        small(encoder="vit_tiny_patch16_224", encoder_args=vit, size=64, tile=14).check_images(real())


def test_what_cannot_work_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"aberration='project' acts on red, green and blue, and in_channels is 1"):
        small(in_channels=1)
    with pytest.raises(ValueError, match="pairs is 'some', expected 'centre' or 'all'"):
        small(pairs="some")
    with pytest.raises(ValueError, match="aberration is 'off'"):
        small(aberration="off")
    with pytest.raises(ValueError, match=r"need 398 px and the images have 255"):
        small(size=255, tile=96, gap=48, jitter=7)
    with pytest.raises(ValueError, match=r"need 70 px and the images have 64"):
        small(tile=20, gap=5, jitter=0).check_images(real())


def cut(picture):
    """Frames and insides of the nine tiles of 16 px that a picture shows."""
    cells = [picture[..., y : y + 18, x : x + 18] for y in (0, 19, 38) for x in (0, 19, 38)]
    return torch.stack([c[..., 0, 0] for c in cells], 1), torch.stack([c[..., 1:-1, 1:-1] for c in cells], 1)


def test_pictures_put_every_outer_tile_into_a_place_of_its_own():
    method = small(aberration=None, grayscale=0.0).eval()
    shown = method.pictures(real(3))["tiles"].images
    assert shown.shape == (3, 2, 3, 56, 56)
    assert 0 <= shown.min() <= shown.max() <= 1
    (_, before), (_, after) = map(cut, shown.unbind(1))
    assert torch.equal(before[:, 4], after[:, 4])
    for seen, placed in zip(before, after, strict=True):
        assert sorted(t.sum().item() for t in seen) == sorted(t.sum().item() for t in placed)


def test_pictures_of_a_perfect_network_are_as_they_were(monkeypatch):
    method = small()
    for shift, color in ((0, GREEN), (1, RED)):
        scores = 9 * torch.eye(8).roll(shift, 1).expand(2, 8, 8)
        monkeypatch.setattr(method, "place", lambda tiles, first, second, scores=scores: scores)
        (white, seen), (marks, placed) = map(cut, method.pictures(real(2))["tiles"].images.unbind(1))
        assert (white == 1).all()
        assert (marks[:, 4] == 1).all()  # the middle one is given
        outer = [k for k in range(9) if k != 4]
        assert torch.equal(marks[:, outer], (torch.tensor(color) / 255).expand(2, 8, 3))
        assert torch.equal(placed[:, outer], seen[:, outer].roll(shift, 1))  # to the place of the next


# --- shortcuts: each is learned in seconds where it is open, and not where it is closed -----------------------------


def seen_through_a_lens(count, generator, side=48, shrink=0.05):
    """Grey clouds whose green is a twentieth smaller than red and blue: fringes point away from the middle."""
    clouds = gaussian_blur(torch.rand(count, 1, side, side, generator=generator), 2.0, 13)
    clouds = ((clouds - 0.5) / clouds.std() / 5 + 0.5).clamp(0, 1)
    line = torch.linspace(-1, 1, side) * (1 - shrink)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).expand(count, -1, -1, -1)
    green = F.grid_sample(clouds, grid, mode="bicubic", align_corners=True).clamp(0, 1)
    return torch.cat([clouds, green, clouds], 1)


@pytest.mark.parametrize(("aberration", "least", "most"), [(None, 0.8, 1.0), ("project", 0, 0.25), ("drop", 0, 0.25)])
def test_fringes_of_a_lens_solve_the_task_only_where_they_are_left(aberration, least, most):
    torch.manual_seed(0)
    method = RelativePatch(
        "conv4", encoder_args={"widths": (16, 32, 32)}, embed_dim=32, hidden_dim=64, dropout=0.0,
        aberration=aberration, grayscale=0.0, downsample=0.0, min_scale=1.0,
    )  # fmt: skip
    assert least <= learned(method, seen_through_a_lens, steps=120, batch=32) <= most


def clouds(count, generator, side=48):
    """Grey clouds: what lies within a few pixels is alike, and nothing else is."""
    clouds = gaussian_blur(torch.rand(count, 1, side, side, generator=generator), 2.0, 13)
    return ((clouds - 0.5) / clouds.std() / 5 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(("gap", "jitter", "least", "most"), [(0, 0, 0.45, 1.0), (8, 1, 0, 0.2)])
def test_edges_that_run_on_solve_the_task_only_without_a_gap(gap, jitter, least, most):
    torch.manual_seed(0)
    pixels = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    pixels.num_features = 64
    method = RelativePatch(
        pixels, tile=8, gap=gap, jitter=jitter, embed_dim=64, hidden_dim=256, dropout=0.0,
        aberration=None, grayscale=0.0, min_scale=1.0, in_channels=1,
    )  # fmt: skip
    assert least <= learned(method, clouds, steps=150, batch=128) <= most
