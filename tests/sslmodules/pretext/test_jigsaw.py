"""Jigsaw: its puzzles are what the permutations say, and the shortcuts its authors found stay closed."""

import math

import pytest
import torch
from runs import learned
from torch import nn

from sslmodules.pretext import jigsaw
from sslmodules.pretext.jigsaw import Jigsaw, permuted
from sslmodules.pretext.permutations import permutation_set
from sslmodules.tiles import GREEN, RED
from sslmodules.views.patches import standardize

SMALL = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "permutations": 24, "embed_dim": 16, "hidden_dim": 32}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def real(count=4, height=64, width=64, channels=3):
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator())


def small(**kwargs):
    torch.manual_seed(0)
    return Jigsaw(**{**SMALL, **kwargs})


def test_slot_s_receives_the_tile_that_the_permutation_names():
    tiles = torch.arange(9).expand(2, 9) * 10
    permutations = permutation_set(6).view(2, 3, 9)
    laid_out = permuted(tiles, permutations)
    for b in range(2):
        for p in range(3):
            assert [laid_out[b, p, s].item() for s in range(9)] == [10 * k for k in permutations[b, p].tolist()]
    back = permuted(laid_out.flatten(0, 1), permutations.view(6, 1, 9).argsort(2))[:, 0]
    assert torch.equal(back, tiles[:1].expand(6, 9))


def test_permuting_embeddings_is_permuting_tiles_under_batch_statistics():
    method = small(dropout=0.0).train()
    tiles, puzzles = method.make_views(real(6))
    puzzles = puzzles[:, :1]
    by_embeddings = method.solve(tiles, puzzles)
    shuffled = permuted(tiles, method.permutations[puzzles])[:, 0]
    method.permutations[:] = torch.arange(9)
    by_tiles = method.solve(shuffled, puzzles)
    torch.testing.assert_close(by_embeddings, by_tiles, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(by_tiles, method.solve(tiles, puzzles), atol=1e-2)


def test_zeroed_classifier_has_the_loss_of_guessing():
    for count in (24, 100):
        method = small(permutations=count)
        nn.init.zeros_(method.classifier[-1].weight)
        nn.init.zeros_(method.classifier[-1].bias)
        loss = method.loss(method.make_views(real()))["loss"].item()
        torch.testing.assert_close(loss, math.log(count), rtol=1e-6, atol=0)


def test_each_image_has_puzzles_of_its_own_none_twice():
    tiles, puzzles = small(puzzles=8).make_views(real(16))
    assert tiles.shape == (16, 9, 3, 16, 16)
    assert (puzzles.shape, puzzles.dtype) == ((16, 8), torch.int64)
    assert all(len(row.unique()) == 8 for row in puzzles)
    assert len(puzzles.unique(dim=0)) == 16
    assert puzzles.unique().tolist() == list(range(24))
    (_, every) = small(puzzles=24).make_views(real(2))
    assert torch.equal(every.sort(1).values, torch.arange(24).expand(2, 24))


def test_tiles_are_standardised_channel_by_channel():
    tiles, _ = small().make_views(real(8))
    torch.testing.assert_close(tiles.mean((3, 4)), torch.zeros(8, 9, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(tiles.std((3, 4), correction=0), torch.ones(8, 9, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("channel_jitter", [0, 2])
def test_channels_of_a_tile_are_shifted_against_each_other_where_asked(channel_jitter):
    method = small(grayscale=1.0, channel_jitter=channel_jitter)
    tiles, _ = method.make_views(real(8))
    alike = (tiles[:, :, 0] == tiles[:, :, 1]).flatten(2).all(2)
    assert alike.float().mean() == 1.0 if channel_jitter == 0 else alike.float().mean() < 0.4


def test_the_set_is_in_the_checkpoint_and_taken_from_it():
    method, other = small(permutation_seed=1), small(permutation_seed=2)
    assert method.state_dict()["permutations"].shape == (24, 9)
    assert not torch.equal(method.permutations, other.permutations)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.permutations, other.permutations)
    assert torch.equal(method.permutations, permutation_set(24, seed=1))
    assert torch.equal(small(rule="mean", permutations=100).permutations, permutation_set(100, rule="mean"))


@pytest.mark.parametrize(
    ("shape", "kwargs", "tile"),
    [
        ((64, 64), {}, 16),
        ((48, 80), {}, 12),
        ((40, 30), {"size": 64}, 16),
        ((28, 28), {"in_channels": 1}, 7),
        ((16, 16), {"channel_jitter": 1}, 4),
    ],
)
def test_any_loaders_images_give_square_grids(shape, kwargs, tile):
    method = small(**kwargs)
    images = real(2, *shape, channels=method.in_channels)
    method.check_images(images)
    tiles, _ = method.make_views(images)
    assert tiles.shape == (2, 9, method.in_channels, tile, tile)
    assert method(images).shape == (2, 16)


def test_whole_images_are_encoded_as_tiles_are():
    images = real(3, 40, 40)
    torch.testing.assert_close(small().preprocess(images), standardize(images / 255))
    assert small(size=32).preprocess(images).shape == (3, 3, 32, 32)


def test_drawing_depends_on_the_generator_alone():
    method, made = small(), []
    for seed in (0, 0, 1):
        method.generator = generator(seed)
        made.append(method.make_views(real()))
    for first, again, other in zip(*made, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_transformer_learns_from_tiles_that_its_patches_divide():
    vit = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    method = small(encoder="vit_tiny_patch16_224", encoder_args=vit, size=64)
    method.check_images(real())
    method.loss(method.make_views(real()))["loss"].backward()
    assert method.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="tiles are 14x14 px and the encoder cuts patches of 4x4; pass a tile"):
        small(encoder="vit_tiny_patch16_224", encoder_args=vit, size=64, tile=14).check_images(real())


def test_what_cannot_work_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="puzzles is 8, expected 1 to 4, the number of permutations"):
        small(permutations=4)
    with pytest.raises(ValueError, match="got a count of 400000 permutations, expected 1 to 362880"):
        small(permutations=400_000)
    with pytest.raises(ValueError, match=r"channels by 6, need 66 px and the images have 64"):
        small(size=64, jitter=1, channel_jitter=6, tile=16)
    with pytest.raises(ValueError, match=r"channels by 4, need 18 px and the images have 16"):
        small(channel_jitter=4).check_images(real(2, 16, 16))


def cut(picture):
    """Frames and insides of the nine tiles of 16 px that a picture shows."""
    cells = [picture[..., y : y + 18, x : x + 18] for y in (0, 19, 38) for x in (0, 19, 38)]
    return torch.stack([c[..., 0, 0] for c in cells], 1), torch.stack([c[..., 1:-1, 1:-1] for c in cells], 1)


def test_pictures_of_a_perfect_network_show_the_truth_twice(monkeypatch):
    method = small()
    monkeypatch.setattr(method, "solve", lambda tiles, puzzles: 9.0 * nn.functional.one_hot(puzzles[:, 0], 24))
    shown = method.pictures(real(3))["puzzles"].images
    assert shown.shape == (3, 3, 3, 56, 56)
    assert 0 <= shown.min() <= shown.max() <= 1
    (white, puzzle), (marks, put_back), (_, truth) = map(cut, shown.unbind(1))
    assert torch.equal(put_back, truth)
    assert not torch.equal(puzzle, truth)
    assert (white == 1).all()
    assert torch.equal(marks, (torch.tensor(GREEN) / 255).expand(3, 9, 3))


def test_pictures_mark_every_tile_that_is_put_back_in_the_wrong_place():
    _, (marks, put_back), (_, truth) = map(cut, small().eval().pictures(real(3))["puzzles"].images.unbind(1))
    right = (put_back == truth).flatten(2).all(2)  # (3, 9)
    assert not right.all()
    assert torch.equal(marks, torch.where(right[..., None], torch.tensor(GREEN), torch.tensor(RED)) / 255)


# --- a shortcut: learned in seconds where it is open, and not where it is closed ------------------------------------


def evening(count, generator, side=48):
    """Noise under light that fades across the image by the same factor with each pixel."""
    line = torch.linspace(0, 1, side)
    light = (2 * (line[:, None] + line / 2 - 1.5)).exp()
    return light * (0.8 + 0.2 * torch.rand(count, 3, side, side, generator=generator))


@pytest.mark.parametrize(("standardised", "least", "most"), [(False, 0.8, 1.0), (True, 0, 0.1)])
def test_brightness_solves_puzzles_only_of_tiles_as_they_are(standardised, least, most, monkeypatch):
    if not standardised:
        monkeypatch.setattr(jigsaw, "standardize", lambda tiles: tiles)
    method = small(hidden_dim=64, dropout=0.0, grayscale=0.0)
    assert least <= learned(method, evening, steps=60, batch=32) <= most
