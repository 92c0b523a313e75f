"""Somebody who looks at what a method makes of photographs: during the run, and of others afterwards."""

import pytest
from flowers import flowers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--trainer.accelerator", "cpu"]
PHOTOS = ["--data", "ImageFolder", "--data.root", "photos", "--data.labels", "true", "--data.size", 32]


@pytest.fixture(scope="module")
def run(newcomer):
    """Folder of a run of two epochs."""
    flowers(newcomer.folder / "photos", 24)
    flowers(newcomer.folder / "garden", 5, seed=1)
    length = ["--data.batch_size", 10, "--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 1]
    newcomer.run("fit", "--model", "Colorization", *SMALL, "--model.width", 16, *PHOTOS, *length)
    [ckpt] = newcomer.folder.rglob("last.ckpt")
    [pictures] = newcomer.folder.rglob("pictures")
    return pictures.parent, ckpt


def test_a_short_run_shows_its_start_and_its_end(run):
    files = {file.name: Image.open(file) for file in (run[0] / "pictures").glob("*.png")}
    assert set(files) == {"colours-step=0.png", "colours-step=4.png"}
    start, end = files.values()
    assert start.size == end.size
    assert start.tobytes() != end.tobytes()  # the colors that are predicted


def test_tensorboard_has_groups_and_a_single_learning_rate(run):
    events = EventAccumulator(str(run[0]))
    events.Reload()
    scalars = set(events.Tags()["scalars"]) - {"epoch"}
    assert {name.split("/")[0] for name in scalars} == {"train", "val", "probe", "monitor", "results"}
    assert {"train/color_accuracy", "val/color_accuracy", "probe/knn/val_accuracy"} <= scalars
    assert [name for name in scalars if "rate" in name or "lr" in name] == ["monitor/learning_rate"]
    assert [event.step for event in events.Images("pictures/colours")] == [0, 4]


def test_own_pictures_without_labels(newcomer, run):
    said = newcomer.run("pictures", "--ckpt", run[1], "--images", "garden", "--out", "seen", "--count", 4)
    assert "seen/colours.png" in said
    [file] = newcomer.folder.joinpath("seen").iterdir()
    width, height = Image.open(file).size
    assert width > 3 * 64
    assert height > 4 * 64
    again = newcomer.run("pictures", "--ckpt", run[1], "--images", "garden", "--out", "seen", status=1)
    assert again.startswith("sslmodules: error: seen/colours.png exists and would be written over; ")
