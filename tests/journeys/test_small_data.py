"""Somebody with a few photographs and fewer labels."""

import pytest
import torch
from flowers import flowers

PHOTOS = ["--data", "ImageFolder", "--data.root", "photos"]
CPU = ["--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def owner(newcomer):
    flowers(newcomer.folder / "photos", 60)
    flowers(newcomer.folder / "labeled", 12, seed=1)
    return newcomer


@pytest.fixture(scope="module")
def chosen(owner):
    """What is said, and the last checkpoint, of a run for which no method was named."""
    said = owner.run("fit", *PHOTOS, "--data.labeled_root", "labeled", "--trainer.max_epochs", 3, *CPU)
    [last] = owner.folder.rglob("last.ckpt")
    return said, last


def test_photographs_and_a_few_labels_in_another_folder_end_in_a_table(chosen):
    said, _ = chosen
    assert "recipe: SimCLR, preset tiny, 3 epochs, because there are 60 pictures of about" in said
    assert "SimCLR" in said.partition("linear probe")[2]
    assert "on 3 held-out images, 9 to fit on" in said


def test_fine_tuning_with_fewer_images_than_a_batch(owner, chosen):
    labeled = ["--data", "ImageFolder", "--data.root", "labeled", "--data.labels", "true", "--data.size", 40]
    said = owner.run("fit", "--model", "FineTune", "--model.ckpt", chosen[1], *labeled, "--trainer.max_epochs", 3, *CPU)
    assert "a training batch holds all 9 images" in said
    assert "warm-up: 0.3 epochs, a tenth of the run, and not 5" in said
    assert "val/accuracy" in said


def test_a_preset_of_moco_shortens_its_queue(owner):
    before = set(owner.folder.rglob("last.ckpt"))
    said = owner.run("fit", "--model", "moco", "--preset", "tiny", *PHOTOS, "--trainer.max_epochs", 2, *CPU)
    assert "queue: 54 keys, as many as there are training images" in said
    [last] = set(owner.folder.rglob("last.ckpt")) - before
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["state_dict"]["queue.features"].shape == (54, 128)
    assert checkpoint["hyper_parameters"]["size"] == 32


def test_a_recipe_of_the_package_is_found_by_its_name(person):
    assert "class_path: sslmodules.MoCo" in person.run("fit", "--config", "moco_v2_imagenet", "--print_config")
    said = person.run("fit", "--config", "moco_v2_imagnet.yaml", status=1)
    assert "did you mean moco_v2_imagenet.yaml" in said
    assert "Traceback" not in said
