"""Pictures that ``predict`` gives, on disk."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from runs import images, loader, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sslmodules import Colorization, SemanticSegmentation, SimCLR, cli
from sslmodules.callbacks import EmbeddingWriter, MaskWriter, PictureWriter
from sslmodules.datamodules import ImageFolder
from sslmodules.reconstruction.color_bins import color_bins
from sslmodules.storage import StorageError
from sslmodules.views.lab import rgb_to_lab

SMALL = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sslmodules"])


class Inverted(LightningModule):
    """Gives each picture inverted, so that a test can tell which one is which."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        x = batch[0] if isinstance(batch, list) else batch
        return {"features": x.float().flatten(1), "labels": None, "pictures": 1 - x / 255.0}


def write(path, seed, side=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def predicted(files, batch_size=3, folder="out", module=None, **kwargs):
    """Predict on a folder of random pictures; gives what lies in the output folder."""
    for i, file in enumerate(files):
        write(Path("photos") / file, i)
    data = ImageFolder("photos", batch_size=batch_size, num_workers=0)
    run = trainer(".", callbacks=[PictureWriter(folder)], **kwargs)
    run.predict(module or Inverted(), datamodule=data)
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def read(path):
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_are_named_after_their_files_below_the_common_root(capsys):
    files = ["deep/cat/1.png", "deep/cat/2.png", "deep/dog/1.png", "deep/dog/10.bmp"]
    assert predicted(files) == {"cat/1.png", "cat/2.png", "dog/1.png", "dog/10.png"}
    for source, target in [("cat/2.png", "cat/2.png"), ("dog/10.bmp", "dog/10.png"), ("dog/1.png", "dog/1.png")]:
        assert (read(f"photos/deep/{source}") == 255 - read(f"out/{target}")).all()
    assert "4 pictures in out" in capsys.readouterr().out


def test_one_stem_with_two_endings_gives_two_pictures():
    assert predicted(["1.png", "1.bmp", "2.png"]) == {"1.png.png", "1.bmp.png", "2.png.png"}
    assert (read("photos/1.bmp") == 255 - read("out/1.bmp.png")).all()


def test_a_single_picture_keeps_its_name():
    assert predicted(["far/away/one.png"]) == {"one.png"}


def test_what_is_read_is_never_written_over():
    before = None
    for folder in ("photos", "photos/../photos"):
        with pytest.raises(ValueError, match=r"is one of the pictures that are read.*pass another folder"):
            predicted(["1.png", "2.png"], folder=folder)
        before = read("photos/1.png") if before is None else before
        assert (read("photos/1.png") == before).all()


def test_pictures_of_unknown_files_are_numbered_in_order():
    x = images(7)[:][0]
    trainer(".", callbacks=[PictureWriter("out")]).predict(Inverted(), DataLoader(x, 3))
    assert sorted(p.name for p in Path("out").iterdir()) == [f"{i:06d}.png" for i in range(7)]
    assert (read("out/000005.png") == 255 - x[5].permute(1, 2, 0).numpy()).all()


def test_batches_of_a_plain_iterable_and_of_two_loaders_do_not_meet():
    x = images(4)[:][0]
    run = trainer(".", callbacks=[PictureWriter("out")])
    run.predict(Inverted(), [DataLoader(x, 2), DataLoader(x.flip(0), 2)])
    assert (read("out/000000.png") == read("out/1/000003.png")).all()

    class Plain:
        def __iter__(self):
            return iter([x[:2], x[2:]])

    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):
        trainer(".", callbacks=[PictureWriter("plain")]).predict(Inverted(), Plain())
    assert len(list(Path("plain").iterdir())) == 4


def test_pictures_are_not_kept_in_memory_and_embeddings_are_written_beside_them():
    run = trainer(".", callbacks=[EmbeddingWriter("e.npz"), PictureWriter("out")])
    kept = run.predict(Inverted(), loader(5))
    assert all(p.keys() == {"features", "labels"} for p in kept)
    with np.load("e.npz") as saved:
        assert saved["features"].shape == (5, 768)


def test_without_pictures_nothing_is_written_nor_said(capsys):
    module = SimCLR(**SMALL)
    assert predicted(["1.png", "2.png"], folder="out", module=module) == set()
    assert not Path("out").exists()
    assert "pictures" not in capsys.readouterr().out


def test_grey_photographs_are_coloured_from_the_command_line(capsys):
    """Grey PNGs in; out come colour PNGs of the same size and lightness, whatever side the network was built for."""
    module = Colorization(**SMALL, width=16, size=24)
    run = trainer(".")
    run.fit_loop.max_epochs = 0
    run.fit(module, loader(8))
    run.save_checkpoint("c.ckpt")
    ramp = np.linspace(60, 200, 40 * 32).reshape(32, 40)
    for i in range(5):
        Path("grey").mkdir(exist_ok=True)
        Image.fromarray(np.roll(ramp, 9 * i).astype(np.uint8)).save(f"grey/{i}.png")
    data = ["--data", "ImageFolder", "--data.root", "grey", "--data.batch_size", "2", "--data.num_workers", "0"]
    paths = ["--predicted.folder", "coloured", "--embeddings.path", "e.npz"]
    cli.main(["predict", "--ckpt_path", "c.ckpt", *data, *paths, "--trainer.accelerator", "cpu"])
    out = capsys.readouterr().out
    assert "5 pictures in coloured" in out
    assert "5 embeddings of length 16 in e.npz" in out
    with np.load("e.npz") as saved:
        assert [Path(f).name for f in saved["files"]] == [f"{i}.png" for i in range(5)]
    for i in range(5):
        grey = torch.from_numpy(read(f"grey/{i}.png")).to(torch.uint8).expand(1, 3, 32, 40)
        coloured = torch.from_numpy(read(f"coloured/{i}.png")).to(torch.uint8).permute(2, 0, 1)[None]
        before, after = rgb_to_lab(grey), rgb_to_lab(coloured)
        inside = ((coloured > 0) & (coloured < 255)).all(1)  # others were clamped
        assert inside.float().mean() > 0.5
        assert (before - after)[:, 0][inside].abs().max() < 1.0
        assert after[:, 1:].abs().amax() > 2


def test_photographs_are_coloured_at_their_full_size_and_shape():
    """The network sees 16 px, and whatever ``size`` the loader has, the picture keeps its own; upright, all of it."""
    module = Colorization(**SMALL, width=16, size=16).eval()
    nn.init.zeros_(module.decoder.last.weight)
    module.decoder.last.bias.data.fill_(-100.0)
    module.decoder.last.bias.data[int((color_bins() - torch.tensor([20.0, 10])).norm(dim=1).argmin())] = 0.0
    Path("photos").mkdir()
    for name, shape in (("wide", (60, 200)), ("tall", (150, 90))):
        pixels = np.random.default_rng(1).integers(60, 190, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save("photos/turned.png", exif=turned)
    data = ImageFolder("photos", size=32, batch_size=4, num_workers=0)
    trainer(".", callbacks=[PictureWriter("out"), EmbeddingWriter("e.npz")]).predict(module, datamodule=data)
    assert read("out/turned.png").shape == (90, 150, 3)
    for name in ("wide", "tall"):
        before, after = (
            torch.from_numpy(read(f"{f}/{name}.png")).permute(2, 0, 1)[None] / 255 for f in ("photos", "out")
        )
        assert after.shape == before.shape
        before, after = rgb_to_lab(before), rgb_to_lab(after)
        assert (before - after)[:, 0].abs().max() < 1
        assert (after[:, 1:] - torch.tensor([20.0, 10]).view(2, 1, 1)).abs().max() < 2
    with np.load("e.npz") as saved:
        assert saved["features"].shape == (3, 16)


def test_a_colour_lies_where_the_network_has_seen_it():
    """The left third of a wide photograph is bright: colours that follow the lightness end where it does."""
    pixels = np.full((60, 180, 3), 80, dtype=np.uint8)
    pixels[:, :60] = 170
    Path("photos").mkdir()
    Image.fromarray(pixels).save("photos/1.png")

    class Bright(Colorization):
        def colors(self, images):
            x = F.adaptive_avg_pool2d(images.float(), (10, 30))[:, :1]
            return torch.cat([x - 120, 0 * x], 1) / 2

    module = Bright(**SMALL, width=16, size=16)
    data = ImageFolder("photos", size=24, batch_size=4, num_workers=0)
    trainer(".", callbacks=[PictureWriter("out")]).predict(module, datamodule=data)
    a = rgb_to_lab(torch.from_numpy(read("out/1.png")).permute(2, 0, 1)[None] / 255)[0, 1]
    assert (a[:, :54] > 15).all()
    assert (a[:, 66:] < -15).all()


def test_a_file_that_cannot_be_read_has_no_picture_and_shifts_no_other():
    for i in range(5):
        write(f"photos/{i}.png", i)
    Path("photos/2.png").write_text("no picture")
    data = ImageFolder("photos", batch_size=2, num_workers=0, on_error="skip")
    with pytest.warns(UserWarning, match="left out"):
        trainer(".", callbacks=[PictureWriter("out"), EmbeddingWriter("e.npz")]).predict(Inverted(), datamodule=data)
    assert sorted(p.name for p in Path("out").iterdir()) == ["0.png", "1.png", "3.png", "4.png"]
    assert all((read(f"photos/{i}.png") == 255 - read(f"out/{i}.png")).all() for i in (0, 1, 3, 4))
    with np.load("e.npz") as saved:
        assert saved["files"].tolist() == [f"photos/{i}.png" for i in (0, 1, 3, 4)]
        np.testing.assert_array_equal(saved["features"][2].reshape(3, 8, 8), read("photos/3.png").transpose(2, 0, 1))


def test_a_folder_that_cannot_be_written_is_one_sentence_at_the_first_batch():
    Path("taken").write_text("a file")
    with pytest.raises(StorageError, match=r"taken/1\.png cannot be written"):
        predicted(["1.png", "2.png"], folder="taken")


def test_masks_have_the_size_of_their_pictures_and_a_palette():
    module = SemanticSegmentation(encoder="conv4", encoder_args={"widths": (8, 16)}, class_names=["sky", "sea", "sand"])
    module.eval().heads[0][1].bias.data = torch.tensor([0.0, 0.0, 9.0])
    for name, shape in (("wide", (20, 50)), ("tall", (33, 17))):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(
            f"photos/{name}.png"
        )
    logits = module.logits(torch.from_numpy(read("photos/tall.png")).to(torch.uint8).permute(2, 0, 1)[None])
    for size, folder in ((None, "own"), (8, "small")):
        data = ImageFolder("photos", size=size, batch_size=4, num_workers=0)
        trainer(".", callbacks=[MaskWriter(folder), EmbeddingWriter()]).predict(module, datamodule=data)
        for name, shape in (("wide", (20, 50)), ("tall", (33, 17))):
            mask = Image.open(f"{folder}/{name}.png")
            assert (mask.mode, mask.size) == ("P", shape[::-1])
            assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
        assert Path(folder, "classes.txt").read_text() == "sky\nsea\nsand\n"
    mask = Image.open("own/tall.png")
    assert (np.asarray(mask) == logits[0].argmax(0).numpy()).all()
    assert mask.getpalette()[:6] == [255, 0, 0, 0, 255, 72]
    assert not Path("embeddings.npz").exists()
