"""Somebody who compares encoders, two commands at a time in one folder."""

import json
import sys
from pathlib import Path

import pytest
from flowers import flowers

ENCODER = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [4, 8]}', "--trainer.accelerator", "cpu"]
PHOTOS = ["--data", "ImageFolder", "--data.root", "photos", "--data.labels", "true", "--data.size", 24]
HELD_OUT = ["--data.val_root", "held_out", "--data.num_workers", 0]
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def researcher(newcomer):
    """Somebody with two trained methods, simclr.ckpt and moco.ckpt."""
    flowers(newcomer.folder / "photos", 18)
    flowers(newcomer.folder / "held_out", 9, seed=1)
    for name, method in (("simclr", "SimCLR"), ("rotation", "Rotation")):
        files = ["--checkpoint.dirpath", name, "--trainer.limit_val_batches", 0]
        newcomer.run("fit", "--model", method, *ENCODER, *PHOTOS, *files, "--trainer.max_epochs", 1)
    return newcomer


def test_two_commands_in_one_folder_end_in_one_report(researcher):
    commands = [
        researcher.start("evaluate", "--ckpt", f"{name}/last.ckpt", *PHOTOS, *HELD_OUT, "--out", "report")
        for name in ("simclr", "rotation")
    ]
    assert [command.status() for command in commands] == [0, 0], "\n".join(command.out for command in commands)
    report = json.loads((researcher.folder / "report" / "report.json").read_text())
    assert set(report["encoders"]) == {"SimCLR", "Rotation", "random"}
    measured = {"linear", "knn", "nmi", "fractions", "stages", "embedding", "pictures"}
    for name, entry in report["encoders"].items():
        assert entry["results"].keys() == measured | ({"pretext"} if name != "random" else set())
    table = (researcher.folder / "report" / "report.md").read_text()
    assert "| | SimCLR | Rotation | random |" in table or "| | Rotation | SimCLR | random |" in table
    left = {file.suffix for file in (researcher.folder / "report").rglob("*") if file.is_file()}
    assert left == {".json", ".md", ".html", ".png", ".safetensors"}  # neither locks nor halves


def test_a_broken_report_is_named(researcher):
    (researcher.folder / "broken").mkdir()
    (researcher.folder / "broken" / "report.json").write_text('{"settings": {')
    evaluate = ["evaluate", "--ckpt", "simclr/last.ckpt", *PHOTOS, *HELD_OUT]
    said = researcher.run(*evaluate, "--out", "broken", status=1)
    assert "error: broken/report.json is not a report of evaluate (JSONDecodeError" in said


def test_under_torchrun_one_process_works_and_says_so(researcher):
    evaluate = ["evaluate", "--ckpt", "simclr/last.ckpt", *PHOTOS, *HELD_OUT]
    said = researcher.run(*evaluate, "--out", "one", launcher=TORCHRUN)
    assert said.count("evaluate runs in one process, on the CPU; other devices and processes are left alone") == 1
    assert said.count("SimCLR: linear") == 1
    assert said.count("one/report.html") == 1
