"""Somebody who compares encoders, two commands at a time in one folder."""

import json

import pytest
from flowers import flowers

ENCODER = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [4, 8]}', "--trainer.accelerator", "cpu"]
PHOTOS = ["--data", "ImageFolder", "--data.root", "photos", "--data.labels", "true", "--data.size", 24]
HELD_OUT = ["--data.val_root", "held_out", "--data.num_workers", 0]


@pytest.fixture(scope="module")
def researcher(newcomer):
    """Somebody with two trained methods, simclr/last.ckpt and rotation/last.ckpt."""
    flowers(newcomer.folder / "photos", 18)
    flowers(newcomer.folder / "held_out", 9, seed=1)
    for name, method in (("simclr", "SimCLR"), ("rotation", "Rotation")):
        files = ["--checkpoint.dirpath", name, "--trainer.limit_val_batches", 0]
        newcomer.run("fit", "--model", method, *ENCODER, *PHOTOS, *files, "--trainer.max_epochs", 1)
    (newcomer.folder / "broken").mkdir()
    (newcomer.folder / "broken" / "report.json").write_text('{"settings": {')
    return newcomer


def test_two_commands_in_one_folder_end_in_one_report(researcher):
    commands = [
        researcher.start("evaluate", "--ckpt", f"{name}/last.ckpt", *PHOTOS, *HELD_OUT, "--out", "report")
        for name in ("simclr", "rotation")
    ]
    assert [command.status() for command in commands] == [0, 0], "\n".join(command.out for command in commands)
    report = json.loads((researcher.folder / "report" / "report.json").read_text())
    first, second = ("SimCLR", "Rotation") if "random Rotation" in report["encoders"] else ("Rotation", "SimCLR")
    assert set(report["encoders"]) == {first, second, "random", f"random {second}"}  # normalized in two ways
    measured = {"linear", "knn", "nmi", "fractions", "stages", "embedding", "pictures"}
    for entry in report["encoders"].values():
        assert entry["results"].keys() == measured | ({"pretext"} if entry["path"] else set())
    table = (researcher.folder / "report" / "report.md").read_text()
    assert f"| | {' | '.join(report['encoders'])} |" in table
    left = {file.suffix for file in (researcher.folder / "report").rglob("*") if file.is_file()}
    assert left == {".json", ".md", ".html", ".png", ".safetensors"}  # neither locks nor halves


def test_of_the_processes_of_a_launcher_the_first_works_and_says_so(researcher):
    evaluate = ["evaluate", "--ckpt", "simclr/last.ckpt", *PHOTOS, *HELD_OUT, "--out"]
    assert researcher.run(*evaluate, "nothing", RANK="1", WORLD_SIZE="2") == ""
    assert not (researcher.folder / "nothing").exists()
    said = researcher.run(*evaluate, "broken", status=1, RANK="0", WORLD_SIZE="2")
    assert said.count("evaluate runs in one process, on the CPU; other devices and processes are left alone") == 1
    assert "error: broken/report.json is not a report of evaluate (JSONDecodeError" in said
