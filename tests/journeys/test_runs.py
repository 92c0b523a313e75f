"""Runs: what they are called, what they leave, how they go on, and how they compare."""

import json
import re

import pytest
import torch
import yaml
from flowers import flowers

METHOD = ["--model", "SimCLR", "--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}']
PHOTOS = ["--data", "ImageFolder", "--data.root", "photos", "--data.labels", "true", "--data.size", 16]
DATA = [*PHOTOS, "--data.batch_size", 16, "--data.num_workers", 0]
SHORT = ["--trainer.accelerator", "cpu", "--trainer.max_epochs"]
FIT = ["fit", *METHOD, *DATA, *SHORT]


@pytest.fixture(scope="module")
def trained(newcomer):
    """Somebody with photographs and a run of two epochs, and what it printed."""
    flowers(newcomer.folder / "photos", 60)
    return newcomer, newcomer.run(*FIT, 2)


def the_run(person):
    [run] = (person.folder / "runs").glob("simclr-*")
    return run


def percents(printed):
    """The row of the trained encoder in the table."""
    return re.search(r"^SimCLR +(.*)$", printed, re.MULTILINE)[1].split()


def test_a_run_is_called_by_method_and_time_and_says_little(trained):
    person, said = trained
    run = the_run(person)
    assert re.fullmatch(r"simclr-\d{4}-\d\d-\d\d-\d{6}", run.name)
    assert {"config.yaml", "results.json", "checkpoints", "pictures"} < {path.name for path in run.iterdir()}
    assert list(run.glob("events.out*"))
    assert not (person.folder / "lightning_logs").exists()
    assert len(re.findall(r"^epoch [12]/2  loss .* images/s$", said, re.MULTILINE)) == 2
    for noise in ("\r", "Tip", "available", "deprecated", "Seed set", "stopped", "num_workers", "logging interval"):
        assert noise not in said


def test_the_numbers_are_those_of_the_files_that_are_named(trained):
    person, said = trained
    run = the_run(person)
    results = json.loads((run / "results.json").read_text())
    found = results["metrics"]["last"]
    columns = ["linear_probe", "linear_probe_10_percent", "knn"]  # 1 % of 48 images is fewer than one of each class
    assert percents(said) == [f"{found[name]:.1%}" for name in columns]
    for name, entry in results["checkpoints"].items():
        checkpoint = torch.load(run / entry["path"], weights_only=True)
        assert checkpoint["global_step"] == entry["step"] == 3 * entry["epoch"]
        assert f"{name} checkpoint   runs/{run.name}/{entry['path']}  (epoch {entry['epoch']}" in said
    assert results["checkpoints"]["last"]["step"] == results["steps"] == 6
    assert results["checkpoints"]["best"]["value"] == results["metrics"]["best"]["probe/val_accuracy"]
    assert results["command"].startswith("sslmodules fit --model SimCLR")
    again = person.run("validate", "--ckpt_path", "last")  # a fresh process, from the file
    assert f"--ckpt_path last: runs/{run.name}/checkpoints/last.ckpt" in again
    assert percents(again) == percents(said)
    assert [path.name for path in (person.folder / "runs").iterdir()] == [run.name]


def test_a_run_that_has_ended_says_how_to_go_on_and_goes_on_in_its_folder(trained):
    person, _ = trained
    run = the_run(person)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = person.run(*FIT, 2, "--ckpt_path", "last")
    assert "nothing is left to train" in said
    assert "--trainer.max_epochs is 2; pass more to go on" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    said = person.run(*FIT, 3, "--ckpt_path", "last")
    assert re.findall(r"^epoch (\d)/3", said, re.MULTILINE) == ["3"]
    assert the_run(person) == run
    results = [json.loads((run / name).read_text()) for name in ("results-1.json", "results.json")]
    assert [found["steps"] for found in results] == [6, 9]
    assert results[0]["started"] == results[1]["started"]
    assert results[0]["duration"] < results[1]["duration"]
    epochs = [
        yaml.safe_load((run / name).read_text())["trainer"]["max_epochs"] for name in ("config-1.yaml", "config.yaml")
    ]
    assert epochs == [2, 3]

    last = run / "checkpoints/last.ckpt"
    said = person.run("fit", "--ckpt_path", last, "--trainer.max_epochs", 4)  # all else from config.yaml
    assert re.findall(r"^epoch (\d)/4", said, re.MULTILINE) == ["4"]
    assert the_run(person) == run
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["root"] == "photos"


def test_runs_of_several_methods_compare_and_each_goes_on_by_itself(trained):
    person, _ = trained
    probe = ["fit", "--model", "LinearProbe", "--model.ckpt", "last", *DATA, *SHORT, 2]
    said = person.run(*probe, "--trainer.check_val_every_n_epoch", 2, "--model.learning_rates", "[0.1, 1.0]")
    run = the_run(person)
    assert f"--model.ckpt last: runs/{run.name}/checkpoints/last.ckpt" in said
    [evaluation] = (person.folder / "runs").glob("linear_probe-*")
    results = json.loads((evaluation / "results.json").read_text())
    assert (
        results["metrics"]["last"]["accuracy"] == results["metrics"]["best"]["accuracy"]
    )  # validated at the end alone
    assert f"{results['metrics']['last']['accuracy']:.4g}" in re.search("^val/accuracy +(.*)$", said, re.MULTILINE)[1]
    said = person.run("fit", "--model", "MoCo", *DATA, *SHORT, 1, "--ckpt_path", "last", status=1)
    assert "--ckpt_path last: no run of MoCo in runs has a last.ckpt" in said
    said = person.run("compare")
    assert [line.split()[0] for line in said.splitlines()[-2:]] == [run.name, evaluation.name]
    assert all(len(line) <= 100 for line in said.splitlines())
