"""What an encoder looks at: maps and masks by hand, colours of patches, and the command on a folder of pictures."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from runs import images, trainer

from sslmodules import DINO, Rotation, cli
from sslmodules.encoders import ViT, export_weights
from sslmodules.evaluation import (
    activation_attention,
    attention_tiles,
    class_attention,
    enlarged,
    mass_mask,
    pca_colors,
    shows_attention,
)
from sslmodules.evaluation.attention import principal_axes
from sslmodules.tiles import GAP

CROPS = {"size": 16, "local_size": 8, "local_crops": 2, "hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16}
TRANSFORMER = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
}


def vit(**kwargs):
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    return ViT(**{**sizes, "dynamic_img_size": True, **kwargs}).eval()


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 3])
def test_class_attention_is_the_class_tokens_row_over_the_patches(registers):
    encoder, x = vit(reg_tokens=registers), torch.randn(2, 3, 12, 20)
    for block in (0, -1):
        whole = encoder.attention(x, block)  # (2, heads, T, T)
        found = class_attention(encoder, x, block)
        assert found.shape == (2, 2, 3, 5)
        for row in range(3):
            for column in range(5):
                token = 1 + registers + 5 * row + column
                torch.testing.assert_close(found[:, :, row, column], whole[:, :, 0, token])
        assert (found.sum((2, 3)) < 1).all()


def test_attention_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="10x16 px, no multiple of the patch"):
        class_attention(vit(), torch.zeros(1, 3, 10, 16))
    with pytest.raises(ValueError, match="block 2 was asked for, the encoder has 2"):
        class_attention(vit(), torch.zeros(1, 3, 16, 16), 2)
    pooled = vit(class_token=False, global_pool="avg")
    assert shows_attention(vit())
    assert not shows_attention(pooled)
    with pytest.raises(ValueError, match="no class token"):
        class_attention(pooled, torch.zeros(1, 3, 16, 16))


def test_mask_is_the_smallest_set_that_holds_the_share():
    attention = torch.tensor([[0.05, 0.30, 0.10], [0.25, 0.20, 0.10]])
    assert mass_mask(attention, 0.6).tolist() == [[False, True, False], [True, True, False]]
    assert mass_mask(7 * attention, 0.55).tolist() == [[False, True, False], [True, False, False]]  # 0.55 to the bit
    assert mass_mask(attention, 1.0).all()
    assert mass_mask(attention, 1e-9).sum() == 1
    several = torch.stack([attention, attention.flip(1)])[None]  # each map has its own
    assert torch.equal(mass_mask(several)[0, 1], mass_mask(attention).flip(1))


def test_of_equal_patches_the_first_make_the_mask():
    assert mass_mask(torch.full((2, 5), 0.1)).flatten().tolist() == [True] * 6 + [False] * 4
    assert mass_mask(torch.full((60, 60), 1 / 7200)).sum() == 2160
    assert not mass_mask(torch.zeros(2, 2)).any()
    with pytest.raises(ValueError, match="the share is 0,"):
        mass_mask(torch.ones(2, 2), 0)


def test_activation_attention_by_hand():
    maps = torch.tensor([[[[1.0, -2.0]], [[2.0, 0.0]], [[0.0, 3.0]]], [[[1.0, 1.0]], [[1.0, 1.0]], [[0.0, 0.0]]]])
    assert activation_attention(maps).tolist() == [[[0.0, 1.0]], [[0.0, 0.0]]]  # 5 and 13; 2 and 2
    wide = torch.tensor([[[[1.0, 2.0, 0.0]], [[1.0, 0.0, 3.0]]]])
    torch.testing.assert_close(activation_attention(wide), torch.tensor([[[0.0, 2 / 7, 1.0]]]))  # 2, 4, 9
    torch.testing.assert_close(activation_attention(wide, power=1), torch.tensor([[[0.0, 0.0, 1.0]]]))  # 2, 2, 3
    assert activation_attention(torch.full((1, 2, 1, 2), 300.0).half()).isfinite().all()
    with pytest.raises(ValueError, match="the power is 0"):
        activation_attention(wide, 0)


def test_stages_of_a_method_have_maps():
    method = Rotation("conv4", encoder_args={"widths": (4, 8)}).eval()
    maps = [activation_attention(m) for m in method.features(images(2)[:][0])]
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16), (2, 8, 8)]


def test_tiles_are_image_mean_heads_and_mask():
    image, attention = torch.rand(1, 3, 4, 4), torch.tensor([[[[0.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]])
    tiles = attention_tiles(image, attention)
    assert tiles.shape == (1, 5, 3, 4, 4)
    torch.testing.assert_close(tiles[:, 0], image)
    for tile, values in ((1, [[0.0, 1.0], [0.5, 0.0]]), (2, [[0.0, 1.0], [0.0, 0.0]]), (3, [[0.0, 0.0], [1.0, 0.0]])):
        by_hand = torch.tensor(values).repeat_interleave(2, 0).repeat_interleave(2, 1)
        torch.testing.assert_close(tiles[0, tile], by_hand.expand(3, 4, 4))
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2, 2:] = True  # 2 of 3 is more than 60 %
    torch.testing.assert_close(tiles[:, 4], torch.where(inside, image, image / 4))


# --- colours ----------------------------------------------------------------------------------------------------------


def test_alike_patches_get_alike_colours_also_in_other_images():
    torch.manual_seed(0)
    kinds = torch.tensor([[[0, 1, 1], [0, 0, 1]], [[1, 1, 0], [0, 1, 0]]])  # (2, 2, 3)
    centers = 5 * torch.randn(2, 16)
    maps = (centers[kinds] + 0.1 * torch.randn(2, 2, 3, 16)).permute(0, 3, 1, 2)
    first = pca_colors(maps)[:, 0]
    assert (first[kinds == 0] > 0.9).all() or (first[kinds == 0] < 0.1).all()
    assert (first[kinds == 1] > 0.9).all() or (first[kinds == 1] < 0.1).all()
    assert abs(first[kinds == 0].mean() - first[kinds == 1].mean()) > 0.9


def test_principal_axes_are_those_of_a_singular_value_decomposition():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 3
    mean, axes = principal_axes(x.split(7), 3)
    centered = x.double() - x.double().mean(0)
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(axes.abs(), torch.linalg.svd(centered)[2][:3].T.abs())
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_signs_do_not_depend_on_the_order_of_the_patches():
    maps = torch.randn(3, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pca_colors(maps.flip(0)).flip(0), pca_colors(maps))
    torch.testing.assert_close(pca_colors(maps.flip(3)).flip(3), pca_colors(maps))


def test_features_without_differences_are_grey():
    assert (pca_colors(torch.full((2, 5, 3, 3), 0.1)) == 0.5).all()
    line = torch.linspace(1, 2, 6).view(1, 1, 2, 3) * torch.tensor([0.3, -0.7, 0.1, 0.9]).view(1, 4, 1, 1)
    shown = pca_colors(line)
    torch.testing.assert_close(shown[0, 0].flatten(), torch.linspace(0, 1, 6))
    assert (shown[0, 1:] == 0.5).all()  # rounding is not made into colours
    with pytest.raises(ValueError, match="3 components were asked for of 4 features of 2 dimensions"):
        pca_colors(torch.zeros(1, 2, 2, 2))


# --- pictures of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_shows_what_its_teacher_looks_at(channels):
    recipe = {**TRANSFORMER, **CROPS, "in_channels": channels, "mean": None, "std": None}
    method = DINO(**{**recipe, "encoder_args": {**TRANSFORMER["encoder_args"], "num_heads": 8}}).eval()
    x = images(3, channels)[:][0]
    with torch.no_grad():
        method.teacher_encoder.blocks[-1].attn.qkv.weight.mul_(20)
    shown = method.pictures(x)
    assert shown["attention"].images.shape == (3, 9, channels, 16, 16)  # image, mean of 8 heads, 6 of them, mask
    attention = class_attention(method.teacher_encoder, method.preprocess(x))
    tiles = attention_tiles(x / 255, attention)
    torch.testing.assert_close(shown["attention"].images, tiles[:, [*range(8), -1]])
    assert shown["pca"].images.shape == (3, 2, 3, 16, 16)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (20, 30), "b/1.png": (17, 17), "b/1.bmp": (40, 10)}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)
    return tmp_path


def saved(folder, method):
    fitter = trainer(folder, max_steps=1)
    fitter.strategy.connect(method)
    fitter.save_checkpoint(folder / "method.ckpt")


def run(*args, ckpt="method.ckpt", pictures="photos", out="out"):
    cli.main(["attention", "--ckpt", ckpt, "--images", pictures, "--out", out, *args])


def written(folder):
    return {str(p.relative_to(folder / "out")): Image.open(p).size for p in (folder / "out").rglob("*.png")}


def side(length, tiles=1):
    """Of a grid."""
    return tiles * (length + GAP) + GAP


def test_command_of_a_transformer(folder, capsys):
    saved(folder, DINO(**TRANSFORMER, **CROPS))
    run("--size", "22", "--block", "0")
    assert written(folder) == {  # 22 px give 5 patches of 4; image, mean, 2 heads, mask
        "a.png.png": (side(32, 5), side(20)), "a.png-pca.png": (side(32, 2), side(20)),
        "b/1.png.png": (side(20, 5), side(20)), "b/1.png-pca.png": (side(20, 2), side(20)),
        "b/1.bmp.png": (side(20, 5), side(44)), "b/1.bmp-pca.png": (side(20, 2), side(44)),
    }  # fmt: skip
    assert "6 files of 3 pictures in out" in capsys.readouterr().out


def test_command_shows_the_teacher(folder):
    method = DINO(**TRANSFORMER, **CROPS)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.zero_()  # whose attention is the same everywhere
    saved(folder, method)
    Image.fromarray(np.tile(np.arange(16, dtype=np.uint8) * 16, (16, 1))).save(folder / "photos" / "grey.png")
    run("--size", "16")
    tiles = np.asarray(Image.open(folder / "out" / "grey.png.png"))
    second = 16 + 2 * GAP
    assert tiles[GAP : GAP + 16, second : second + 16].std() > 0


def test_command_of_a_convolutional_encoder(folder, capsys):
    torch.manual_seed(0)
    method = Rotation("conv4", encoder_args={"widths": (4, 8, 8)}, size=16)
    saved(folder, method)
    run("--size", "18")
    assert written(folder) == {
        "a.png.png": (side(27, 4), side(18)),
        "b/1.png.png": (side(18, 4), side(18)),
        "b/1.bmp.png": (side(18, 4), side(36)),  # of a long picture the middle
    }
    assert "3 files of 3 pictures in out" in capsys.readouterr().out
    found = np.asarray(Image.open(folder / "out/b/1.png.png"))
    rows, third = slice(GAP, GAP + 18), 2 * 18 + 3 * GAP
    x = torch.from_numpy(found[rows, rows].copy()).permute(2, 0, 1)[None]  # the picture itself
    method.eval().size = None
    with torch.no_grad():
        by_hand = enlarged(activation_attention(method.features(x, [1])[0])[:, None], 18, 18)[0, 0]
    assert np.abs(found[rows, third : third + 18, 0] - 255 * by_hand.numpy()).max() <= 1


def refused(capsys, *args, **options):
    """What the command prints on stderr when it ends with status 1."""
    with pytest.raises(SystemExit, match="^1$"):
        run(*args, **options)
    return capsys.readouterr().err


def test_command_of_published_weights(folder, monkeypatch, capsys):
    export_weights(DINO(**TRANSFORMER, **CROPS).teacher_encoder, folder / "vit.safetensors")
    monkeypatch.setattr(sys, "argv", ["sslmodules"])
    said = refused(capsys, ckpt="vit.safetensors")
    assert re.search("error: .*pass num_heads", said)  # 24 wide: its heads do not show in the file
    export_weights(Rotation("resnet18-cifar").encoder, folder / "resnet.pt")
    (folder / "photos/b/1.bmp").unlink()
    run("--size", "16", "--encoder", "resnet18-cifar", ckpt="resnet.pt")
    assert written(folder).keys() == {"a.png", "b/1.png"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pictures": "nowhere"}, "--images nowhere: there is no such folder"),
        ({"pictures": "empty"}, "--images empty: there is no picture in it"),
        ({"ckpt": "nothing.ckpt"}, "nothing.ckpt: there is no such file"),
        ({"ckpt": "photos/a.png"}, r"photos/a.png cannot be read as tensors"),
        ({"out": "photos/out"}, "--out photos/out lies in --images photos"),
        ({"size": "3"}, "--size 3 is smaller than a patch of the encoder"),
        ({"block": "2"}, "--block 2: the encoder has 2, the first of which is 0"),
        ({"pictures": "broken"}, "broken/a.png cannot be read as a picture"),
    ],
)
def test_bad_input_gets_one_sentence(folder, options, sentence, capsys):
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/a.png").write_bytes(b"none")
    saved(folder, DINO(**TRANSFORMER, **CROPS))
    given = [f"--{o}={options.pop(o)}" for o in ("size", "block") if o in options]
    assert re.search(f"^sslmodules: error: .*{sentence}", refused(capsys, *given, **options), re.MULTILINE)
    assert not (folder / "out").exists()


def test_nothing_is_written_over(folder, capsys):
    saved(folder, Rotation("conv4", encoder_args={"widths": (4, 8)}))
    run("--size", "16")
    before = (folder / "out/a.png.png").read_bytes()
    assert "a.png.png exists and would be written over; pass another --out" in refused(capsys, "--size", "24")
    assert (folder / "out/a.png.png").read_bytes() == before
