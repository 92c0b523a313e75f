"""Two processes train together: the files and the table of one, the same end for both, and one error for both."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from flowers import flowers

from sslmodules.datamodules import ImageFolder
from sslmodules.datamodules.sampler import ResumableSampler

FIT = ["fit", "--model", "SimCLR", "--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}']
FIT += ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--data", "ImageFolder", "--data.root", "photos"]
FIT += ["--data.size", 16, "--data.batch_size", 3, "--data.num_workers", 0]
LABELED = ["--data.labels", True, "--data.val_fraction", 0.25]
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def trained(newcomer):
    """What two processes print that train for two epochs on 18 photographs, with 6 held out."""
    flowers(newcomer.folder / "photos", 24)
    return newcomer.run(*FIT, *LABELED, "--trainer.max_epochs", 2, fresh=True)


def last_checkpoint(folder):
    newest = max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return newest, torch.load(newest, weights_only=True)


def test_the_table_measures_all_images_and_the_files_are_those_of_one_process(newcomer, trained):
    assert "on 6 held-out images, 18 to fit on" in trained
    assert trained.count("held-out images") == 1
    folder = newcomer.folder
    assert last_checkpoint(folder)[1]["global_step"] == 6
    assert len(list(folder.rglob("last.ckpt"))) == len(list(folder.rglob("best.ckpt"))) == 1
    assert len(list(folder.rglob("config.yaml"))) == len(list(folder.rglob("results.json"))) == 1
    assert any(folder.rglob("pictures/*.png"))


def test_torchrun_goes_on_where_the_processes_of_lightning_ended(newcomer, trained):
    path, _ = last_checkpoint(newcomer.folder)
    more = [*LABELED, "--trainer.max_epochs", 3, "--ckpt_path", path]
    assert "on 6 held-out images, 18 to fit on" in newcomer.run(*FIT, *more, launcher=TORCHRUN)
    assert last_checkpoint(newcomer.folder)[1]["global_step"] == 9


def test_a_picture_that_one_process_cannot_read_ends_both_with_its_sentence(newcomer, trained):
    photos = newcomer.folder / "photos"
    data = ImageFolder(photos, size=16, batch_size=3, val_fraction=0)
    data.setup("fit")
    second = ResumableSampler(range(24), num_replicas=2, rank=1).order(0)
    bad = data.files("train")[second[4]]  # in the second batch of the second process
    shutil.copyfile(bad, newcomer.folder / "kept.jpg")
    Path(bad).write_bytes(b"not a picture")
    said = newcomer.run(*FIT, "--data.val_fraction", 0, "--trainer.max_epochs", 2, fresh=True, status=1)
    shutil.copyfile(newcomer.folder / "kept.jpg", bad)
    assert said.count("sslmodules: error: ") == 1
    assert f"{Path(bad).name} cannot be read as a picture" in said
    assert "Traceback" not in said
    assert "Connection closed" not in said
