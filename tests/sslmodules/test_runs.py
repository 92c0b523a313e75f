"""Folders of runs, by their names and times."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from sslmodules import runs

NOON = datetime(2026, 11, 24, 12, 0, 5)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(method="SimCLR", root=".", last=None, best=None, epochs=3):
    """A run with checkpoints that were written at these seconds."""
    folder = runs.new_run(root, method, NOON)
    (folder / "config.yaml").write_text(
        f"model: {{class_path: sslmodules.{method}}}\ntrainer: {{max_epochs: {epochs}}}\n"
    )
    for name, seconds in (("last", last), ("best", best)):
        if seconds is not None:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / f"{name}.ckpt").touch()
            os.utime(folder / "checkpoints" / f"{name}.ckpt", (seconds, seconds))
    return folder


def test_runs_of_one_second_get_folders_of_their_own():
    folders = [runs.new_run("out", name, NOON) for name in ("SimCLR", "SimCLR", "SimCLR", "MoCo")]
    names = [
        f"{name}-2026-11-24-120005{more}"
        for name, more in zip(["simclr"] * 3 + ["moco"], ["", "-2", "-3", ""], strict=True)
    ]
    assert folders == [Path("out/runs").absolute() / name for name in names]
    assert all(folder.is_dir() for folder in folders)


def test_the_newest_run_is_the_one_that_wrote_last():
    first, second = run(last=200), run(last=100)
    assert runs.find_checkpoint("last").parent.parent.name == first.name
    os.utime(second / "checkpoints/last.ckpt", (300, 300))  # it was resumed
    assert runs.find_checkpoint("last").parent.parent.name == second.name


def test_a_checkpoint_is_of_the_method_that_is_asked_for():
    simclr = run("SimCLR", last=100, best=50)
    run("MoCo", last=200)
    run("SimCLR")  # without a checkpoint
    assert runs.find_checkpoint("last", wanted="SimCLR".__eq__) == Path("runs", simclr.name, "checkpoints/last.ckpt")
    assert runs.find_checkpoint("best") == Path("runs", simclr.name, "checkpoints/best.ckpt")
    for name, method in (("best", "MoCo"), ("last", "DINO")):
        with pytest.raises(
            FileNotFoundError, match=rf"--ckpt_path {name}: no run of {method} in runs has a {name}.ckpt"
        ):
            runs.find_checkpoint(name, wanted=method.__eq__, described=method)
    with pytest.raises(FileNotFoundError, match=r"--ckpt last: no run in out/runs has a last.ckpt"):
        runs.find_checkpoint("last", "out", option="--ckpt")


def test_what_is_not_a_run_is_passed_over():
    kept = run(last=100)
    for name, text in (("a", "- 1"), ("b", "model: none"), ("c", "{")):
        (Path("runs") / name / "checkpoints").mkdir(parents=True)
        (Path("runs") / name / "checkpoints/last.ckpt").touch()
        (Path("runs") / name / "config.yaml").write_text(text)
    assert runs.find_checkpoint("last", wanted=lambda method: True).parent.parent.name == kept.name
    assert runs.run_of(kept / "checkpoints/last.ckpt") == kept
    assert runs.run_of("elsewhere/last.ckpt") is None


def test_results_come_back_as_written_and_others_are_named():
    folder = run()
    with pytest.raises(FileNotFoundError, match=f"{folder.name}: no results.json"):
        runs.read_results(folder)
    results = dict.fromkeys(runs.KEYS, "something") | {"metrics": {"last": {"knn": 0.5}}}
    assert runs.write_results(folder, results) == folder / "results.json"
    assert runs.read_results(folder) == results
    assert sorted(os.listdir(folder)) == ["config.yaml", "results.json"]
    for text in ("{", "[]", '{"method": "SimCLR"}'):
        (folder / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results.json"):
            runs.read_results(folder)


def test_results_that_cannot_be_written_leave_those_that_there_are():
    folder = run()
    runs.write_results(folder, dict.fromkeys(runs.KEYS, "there"))
    with pytest.raises(TypeError):
        runs.write_results(folder, {"method": "SimCLR", "model": object()})
    assert runs.read_results(folder)["method"] == "there"
    assert sorted(os.listdir(folder)) == ["config.yaml", "results.json"]


def test_a_run_that_goes_on_keeps_its_earlier_settings_and_results():
    folder = run(epochs=3)
    same = runs.run_config(folder) | {"ckpt_path": "last.ckpt"}
    runs.write_results(folder, {"method": "first"})
    runs.set_aside(folder, same)
    assert sorted(os.listdir(folder)) == ["config.yaml", "results-1.json"]
    runs.write_results(folder, {"method": "second"})
    runs.set_aside(folder, same | {"trainer": {"max_epochs": 5}})
    assert sorted(os.listdir(folder)) == ["config-1.yaml", "config.yaml", "results-1.json", "results-2.json"]
    assert json.loads((folder / "results-2.json").read_text())["method"] == "second"


def test_tables_of_runs_do_not_wait_for_torch():
    code = f"import importlib.util as u, sys; s = u.spec_from_file_location('runs', {runs.__file__!r}); "
    code += "s.loader.exec_module(u.module_from_spec(s)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
