"""Tiles as one picture: where each stands, its caption and its mark; and what every method shows."""

import pytest
import torch
from method_list import METHODS, kind
from runs import EXAMPLES

from sslmodules import LinearProbe
from sslmodules.tiles import GREEN, RED, Tiles, framed, grid, rgb

COLORS = torch.tensor([RED, GREEN, (255, 255, 255)])


def test_tiles_stand_in_rows_and_columns_and_are_enlarged_by_a_whole_number():
    images = torch.rand(2, 3, 3, 16, 24)
    drawn = grid(Tiles(images), min_side=40)
    assert drawn.shape == (3, 2 * (32 + 4) + 4, 3 * (48 + 4) + 4)
    for row in range(2):
        for column in range(3):
            tile = drawn[:, 4 + 36 * row : 36 + 36 * row, 4 + 52 * column : 52 + 52 * column]
            torch.testing.assert_close(tile[:, ::2, ::2], images[row, column], rtol=0, atol=0.5 / 255 + 1e-6)
            assert torch.equal(tile[:, 1::2, 1::2], tile[:, ::2, ::2])


@pytest.mark.parametrize("side", [16, 64, 224])
def test_captions_stand_above_their_columns_and_apart_from_each_other(side):
    captions = ["image", "turned by 270°", "principal components of the patches", "reconstruction"]
    drawn = grid(Tiles(torch.full((1, 4, 3, side, side), 0.5), captions))
    dark = (drawn < 0.4).all(0)  # letters
    gray = ((drawn - 0.5).abs() < 0.01).all(0)  # tiles, but also the edges of some letters
    top = (gray.sum(1) >= 4 * max(side, 64)).nonzero()[0, 0]
    assert not dark[top:].any()
    assert dark[:top].sum() > 100
    assert not dark[0].any()
    tiles = gray[top].nonzero().flatten()
    starts = [tiles[0], *tiles[1:][tiles.diff() > 1]]
    middles = [int(start) + max(side, 64) / 2 for start in starts]
    letters = dark[:top].any(0).nonzero().flatten()
    for column in range(4):  # every letter is nearer to its own column's middle than to another's
        nearest = [min(range(4), key=lambda c: abs(int(x) - middles[c])) for x in letters]
        assert column in nearest
    assert not dark[:, [0, -1]].any()  # none is cut off


def test_marks_are_green_frames_around_right_and_red_ones_around_wrong_tiles():
    drawn = grid(Tiles(torch.zeros(1, 3, 1, 64, 64), right=torch.tensor([[1, 0, -1]]))).mul(255).round().int()
    cell = 64 + 2 * 3 + 4
    for column, color in enumerate((GREEN, RED, (255, 255, 255))):
        frame = drawn[:, 4:74, 4 + cell * column : 74 + cell * column].clone()
        assert not frame[:, 3:-3, 3:-3].any()
        frame[:, 3:-3, 3:-3] = torch.tensor(color)[:, None, None]
        assert (frame == torch.tensor(color)[:, None, None]).all()


def test_pieces_are_framed_where_right_wrong_and_neither():
    pieces = framed(torch.zeros(1, 3, 2, 32, 32), torch.tensor([[0, 1, -1]]))
    assert pieces.shape == (1, 3, 3, 36, 36)
    assert torch.equal(pieces[0, :, :, 0, 0].mul(255).round().int(), COLORS.int())
    assert not pieces[..., 2:-2, 2:-2].any()
    assert torch.equal(framed(torch.zeros(2, 1, 4, 4))[:, :, 0, 0], torch.ones(2, 3))


def test_any_number_of_channels_is_shown_and_values_outside_are_cut():
    for channels in (1, 2, 3, 4, 13):
        shown = rgb(torch.full((2, channels, 4, 4), 2.0))
        assert torch.equal(shown, torch.ones(2, 3, 4, 4))
    assert torch.equal(rgb(torch.tensor([torch.nan, -1.0, 0.5]).view(3, 1, 1)), torch.tensor([0, 0, 0.5]).view(3, 1, 1))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_its_columns_are(name):
    torch.manual_seed(0)
    method = METHODS[name]().eval()
    with torch.no_grad():
        shown = method.pictures(EXAMPLES[kind(name)](3)[:][0])
    assert shown
    for tiles in shown.values():
        assert tiles.images.ndim == 5
        assert len(tiles.images) == 3
        assert len(tiles.captions) == tiles.images.shape[1]
        assert all(caption and caption == caption.strip() for caption in tiles.captions)
        assert tiles.right is None or tiles.right.shape == tiles.images.shape[:2]
        assert grid(tiles).shape[0] == 3


def test_a_classifier_tells_the_class_of_each_image_and_where_it_is_wrong():
    probe = LinearProbe(encoder="conv4", encoder_args={"widths": (4, 8)}, num_classes=3, learning_rates=[0.1]).eval()
    probe.scores = lambda x: torch.tensor([[[9.0, 0, 0]], [[9.0, 0, 0]], [[0, 0, 0.1]]])
    x = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    [tiles] = probe.pictures(x, torch.tensor([0, 1, -1])).values()
    assert tiles.captions == ["0 100%", "0 100%, is 1", "2 36%"]
    assert tiles.right.tolist() == [[1, 0, -1]]
    [tiles] = probe.pictures(x).values()
    assert tiles.right is None
    assert tiles.captions[1] == "0 100%"


def test_a_classifier_of_several_labels_tells_all_of_them():
    kwargs = {"encoder": "conv4", "encoder_args": {"widths": (4, 8)}, "num_classes": 3, "learning_rates": [0.1]}
    probe = LinearProbe(**kwargs, multi_label=True).eval()
    probe.scores = lambda x: torch.tensor([[[9.0, 9, -9]], [[-9.0, -9, -9]]])
    [tiles] = probe.pictures(torch.zeros(2, 3, 16, 16), torch.tensor([[1, 1, 0], [0, 0, 1]])).values()
    assert tiles.captions == ["0 100%, 1 100%", "none, is 2"]
    assert tiles.right.tolist() == [[1, 0]]
