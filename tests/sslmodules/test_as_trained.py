"""New pictures are read as in the training of a checkpoint, unless the command line tells otherwise."""

import numpy as np
import pytest
import torch
from flowers import flowers
from method_list import TINY
from runs import trainer
from torch.utils.data import DataLoader

from sslmodules import SimCLR
from sslmodules.cli import main
from sslmodules.datamodules import ImageFolder
from sslmodules.inputs import InputFormat


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with photographs of several shapes, and no checkpoint yet."""
    monkeypatch.chdir(tmp_path)
    flowers(tmp_path / "photos", 6, classes=2)
    return tmp_path


def trained(folder, shape=(16, 16), channels=3):
    """Write m.ckpt of a method that was trained on images of a shape from an ordinary loader."""
    module = SimCLR(**TINY, in_channels=channels)
    run = trainer(folder, max_steps=1)
    run.fit(module, DataLoader(torch.zeros(8, channels, *shape, dtype=torch.uint8), 4))
    run.save_checkpoint(folder / "m.ckpt")
    return module


def predicted(*options):
    """What ``sslmodules predict`` writes for the photographs."""
    words = ["--ckpt_path", "m.ckpt", "--data", "ImageFolder", "--data.root", "photos", "--trainer.accelerator", "cpu"]
    main(["predict", *words, "--trainer.logger", "false", *options])
    with np.load("embeddings.npz") as saved:
        return saved["features"]


def test_predict_takes_the_size_of_the_training_unless_told_otherwise(folder, capsys):
    trained(folder)
    as_trained = predicted()
    assert "--data.size 16, as in the training of m.ckpt" in capsys.readouterr().out
    np.testing.assert_array_equal(predicted("--data.size", "16"), as_trained)
    assert "as in the training" not in capsys.readouterr().out
    assert np.abs(predicted("--data.size", "40") - as_trained).max() > 1e-3


def test_images_that_are_not_square_and_gray_are_read_so(folder, capsys):
    module = trained(folder, (12, 20), channels=1)
    features = predicted()
    assert "--data.size (12, 20), --data.mode L, as in the training" in capsys.readouterr().out
    files = ImageFolder("photos", size=(12, 20), mode="L", val_fraction=0).files("train")
    np.testing.assert_allclose(features, module.embed(files).numpy(), rtol=1e-4, atol=1e-5)


def test_a_probe_on_a_checkpoint_trains_on_pictures_of_its_size(folder, capsys):
    trained(folder)
    words = [
        "fit",
        "--model",
        "LinearProbe",
        "--model.ckpt",
        "m.ckpt",
        "--data",
        "ImageFolder",
        "--data.root",
        "photos",
    ]
    words += [
        "--data.labels",
        "true",
        "--data.val_fraction",
        "0.4",
        "--data.batch_size",
        "2",
        "--trainer.max_epochs",
        "1",
    ]
    main([*words, "--trainer.accelerator", "cpu", "--checkpoint.dirpath", "kept"])
    assert "--data.size 16, as in the training of m.ckpt" in capsys.readouterr().out
    held = torch.load("kept/last.ckpt", weights_only=True)
    assert held["sslmodules"]["inputs"]["shape"] == (3, 16, 16)


def test_evaluate_reads_at_the_size_of_the_checkpoints_or_says_that_they_differ(folder, capsys):
    trained(folder)
    words = ["--data", "ImageFolder", "--data.root", "photos", "--data.labels", "true", "--data.val_fraction", "0.4"]
    main(["evaluate", "--ckpt", "m.ckpt", *words])
    assert "--data.size 16, as in the training of m.ckpt" in capsys.readouterr().out
    (folder / "m.ckpt").rename(folder / "small.ckpt")
    trained(folder, (24, 24))
    with pytest.raises(SystemExit):  # the folder holds the report of other images
        main(["evaluate", "--ckpt", "m.ckpt", "small.ckpt", *words])
    assert "trained on images of several formats; --data.size gives all of them one size" in capsys.readouterr().out


def test_attention_shows_pictures_at_the_size_of_the_training(folder, capsys):
    trained(folder)
    main(["attention", "--ckpt", "m.ckpt", "--images", "photos", "--out", "maps"])
    assert "pictures are read at 16 px, as in the training of m.ckpt; --size gives another" in capsys.readouterr().out
    main(["attention", "--ckpt", "m.ckpt", "--images", "photos", "--out", "large", "--size", "40"])
    assert "as in the training" not in capsys.readouterr().out


def test_a_resumed_run_that_reads_other_images_notes_those(folder):
    trained(folder)
    module = SimCLR(**TINY)
    run = trainer(folder, max_steps=2)
    run.fit(module, DataLoader(torch.zeros(8, 3, 24, 24, dtype=torch.uint8), 4), ckpt_path=folder / "m.ckpt")
    assert module.input_format == InputFormat("image", (3, 24, 24), "RGB", None, None, "center")


def test_the_weights_of_a_checkpoint_are_not_downloaded_anew_on_the_command_line(folder, monkeypatch):
    from timm.models import _builder

    monkeypatch.setattr(_builder, "load_pretrained", lambda *args, **kwargs: None)
    module = SimCLR("test_resnet", encoder_args={"pretrained": True})
    run = trainer(folder, max_steps=1)
    run.fit(module, DataLoader(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), 4))
    run.save_checkpoint(folder / "m.ckpt")
    monkeypatch.setattr(_builder, "load_pretrained", _refuse)
    features = predicted()
    files = ImageFolder("photos", val_fraction=0).files("train")
    np.testing.assert_allclose(features, module.embed(files).numpy(), rtol=1e-4, atol=1e-5)


def _refuse(*args, **kwargs):
    raise OSError("asked the network")
