"""From a trained classifier to answers on new pictures."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from flowers import flowers
from PIL import Image

import sslmodules
from sslmodules.datamodules.pictures import read_picture

KINDS = ["daisy", "rose", "tulip"]
TINY = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--trainer.accelerator", "cpu"]
FOLDER = ["--data", "ImageFolder", "--data.size", 32, "--data.num_workers", 0, "--data.batch_size", 4]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def classifier(newcomer):
    """A classifier of flowers, and a folder of new pictures, one of which cannot be read."""
    flowers(newcomer.folder / "labeled", 24)
    newcomer.run(
        "fit", "--model", "FineTune", *TINY, *FOLDER, "--data.root", "labeled", "--data.labels", "true",
        "--model.mixup", 0, "--model.cutmix", 0, "--model.randaugment", "null", "--trainer.max_epochs", 2,
    )  # fmt: skip
    [last] = newcomer.folder.rglob("last.ckpt")
    shutil.copy(last, newcomer.folder / "flowers.ckpt")
    for i, file in enumerate(sorted(flowers(newcomer.folder / "some", 9, seed=1).rglob("*.jpg"))):
        (newcomer.folder / "new").mkdir(exist_ok=True)
        file.rename(newcomer.folder / "new" / f"{i}.jpg")
    (newcomer.folder / "new" / "3.jpg").write_bytes(b"no picture")
    newcomer.run(
        "predict", "--ckpt_path", "flowers.ckpt", *FOLDER, "--data.root", "new", "--data.on_error", "skip",
        "--predictions.path", "one/answers.csv", "--predictions.k", 2, "--embeddings.path", "one/e.npz",
    )  # fmt: skip
    return newcomer


def test_new_pictures_get_the_names_of_their_classes_and_a_bad_file_gets_none(classifier):
    rows = table(classifier.folder / "one" / "answers.csv")
    assert [row["file"] for row in rows] == [f"new/{i}.jpg" for i in range(9) if i != 3]
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    module = sslmodules.load(classifier.folder / "flowers.ckpt")
    assert module.class_names == KINDS
    images = [read_picture(str(classifier.folder / row["file"]), (32, 32)) for row in rows]
    for row, (best, second) in zip(rows, module.classify(images, k=2), strict=True):
        assert [row["class"], row["class_2"]] == [best.name, second.name]
        assert [float(row["probability"]), float(row["probability_2"])] == pytest.approx(
            [best.probability, second.probability], 1e-3
        )
    assert not (classifier.folder / "embeddings.npz").exists()


def test_two_processes_write_the_files_of_one(classifier):
    said = classifier.run(
        "predict", "--ckpt_path", "flowers.ckpt", *FOLDER, "--data.root", "new", "--data.on_error", "skip",
        "--predictions.path", "two/answers.csv", "--predictions.k", 2, "--embeddings.path", "two/e.npz",
        "--trainer.devices", 2, fresh=True,
    )  # fmt: skip
    assert said.count("1 file could not be read, left out: new/3.jpg") == 1
    assert said.count("predictions for 8 inputs in two/answers.csv") == 1
    one, two = classifier.folder / "one", classifier.folder / "two"
    assert {path.name for path in two.iterdir()} == {"answers.csv", "e.npz"}
    assert [(r["file"], r["class"]) for r in table(two / "answers.csv")] == [
        (r["file"], r["class"]) for r in table(one / "answers.csv")
    ]
    with np.load(one / "e.npz") as a, np.load(two / "e.npz") as b:
        assert a["files"].tolist() == b["files"].tolist() == [r["file"] for r in table(one / "answers.csv")]
        np.testing.assert_allclose(a["features"], b["features"], rtol=1e-5, atol=1e-6)
        assert a["features"].shape == (8, 16)


def test_a_target_that_cannot_be_written_is_one_sentence(classifier):
    (classifier.folder / "taken").write_text("a file, not a folder")
    said = classifier.run(
        "predict", "--ckpt_path", "flowers.ckpt", *FOLDER, "--data.root", "some/..", "--data.on_error", "skip",
        "--predictions.path", "taken/answers.csv", status=1,
    )  # fmt: skip
    assert "taken/answers.csv cannot be written" in said
    assert "Traceback" not in said
    assert Path(classifier.folder / "taken").read_text() == "a file, not a folder"


def test_masks_of_new_photographs_have_their_size_and_the_names_that_training_had(person):
    flowers(person.folder / "new", 3)
    for split, count in (("train", 8), ("val", 4)):
        for file in flowers(person.folder / "images" / split, count, seed=count).rglob("*.jpg"):
            mask = person.folder / "masks" / file.relative_to(person.folder / "images").with_suffix(".png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(file)).astype(int)
            Image.fromarray((pixels[..., 1] < pixels.max(2)).astype(np.uint8)).save(mask)  # what is not green
    person.run(
        "fit", "--model", "SemanticSegmentation", *TINY, "--model.size", 32, "--model.train_encoder", "true",
        "--model.learning_rate", 0.02, "--data", "MaskFolder", "--data.images", "images/{split}",
        "--data.masks", "masks/{split}", "--data.classes", '["leaves", "petals"]', "--data.batch_size", 4,
        "--data.num_workers", 0, "--trainer.max_epochs", 6,
    )  # fmt: skip
    [last] = person.folder.rglob("last.ckpt")
    before = set(person.folder.iterdir())
    person.run("predict", "--ckpt_path", last, "--data", "ImageFolder", "--data.root", "new", "--data.num_workers", 0,
               "--masks.folder", "found")  # fmt: skip
    assert set(person.folder.iterdir()) - before == {person.folder / "found"}
    assert (person.folder / "found" / "classes.txt").read_text() == "leaves\npetals\n"
    for photo in (person.folder / "new").rglob("*.jpg"):
        mask = Image.open(person.folder / "found" / photo.relative_to(person.folder / "new").with_suffix(".png"))
        pixels = np.asarray(Image.open(photo)).astype(int)
        assert mask.size == pixels.shape[1::-1]
        assert (np.asarray(mask) == (pixels[..., 1] < pixels.max(2))).mean() > 0.8
