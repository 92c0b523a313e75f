"""Checkpoints by name, and what a command line takes over from the run beside one."""

import json
from pathlib import Path

import pytest
import yaml
from method_list import TINY
from runs import loader, trainer

from sslmodules import SimCLR
from sslmodules.cli.arguments import completed
from sslmodules.cli.going_on import with_paths
from sslmodules.cli.run_folder import RunRecord, goes_on_in, nothing_left
from sslmodules.runs import new_run


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(method, root=".", names=("last",)):
    folder = new_run(root, method)
    config = {"model": {"class_path": f"sslmodules.{method}"}, "data": {"class_path": "Digits", "init_args": {}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "checkpoints").mkdir()
    for name in names:
        (folder / "checkpoints" / f"{name}.ckpt").touch()
    return folder


def last_of(folder):
    return str((folder / "checkpoints/last.ckpt").relative_to(Path.cwd()))


@pytest.mark.parametrize(
    ("args", "method"),
    [
        (["--model", "SimCLR", "--ckpt_path", "last"], "SimCLR"),
        (["--model", "sslmodules.SimCLR", "--ckpt_path=last"], "SimCLR"),
        (["--model", '{"class_path": "sslmodules.SimCLR"}', "--ckpt_path", "last"], "SimCLR"),
        (["--config", "simclr.yaml", "--ckpt_path", "last"], "SimCLR"),
        (["--ckpt_path", "last"], "LinearProbe"),  # the newest of all
        (["--model.ckpt", "last", "--model", "LinearProbe"], "MoCo"),  # the newest that is no evaluation
        (["--ckpt", "other.ckpt", "last", "--data", "Digits"], "LinearProbe"),
    ],
)
def test_last_is_the_newest_run_that_is_meant(args, method, capsys):
    Path("simclr.yaml").write_text("model: {class_path: SimCLR}\n")
    runs = {name: run(name) for name in ("SimCLR", "MoCo", "LinearProbe")}
    found = with_paths(args)
    assert last_of(runs[method]) in found
    assert "last" not in found
    option = next(a.split("=")[0] for a in args if "ckpt" in a)
    assert capsys.readouterr().err == f"{option} last: {last_of(runs[method])}\n"


def test_runs_are_looked_for_where_they_are_written():
    elsewhere, here = run("SimCLR", "out"), run("SimCLR")
    fit = ["--model", "SimCLR", "--ckpt_path", "last"]
    assert with_paths([*fit, "--trainer.default_root_dir", "out"])[3] == last_of(elsewhere)
    Path("c.yaml").write_text("trainer: {default_root_dir: out}\n")
    assert with_paths([*fit, "--config", "c.yaml"])[3] == last_of(elsewhere)
    assert with_paths(fit)[3] == last_of(here)
    Path("mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no last.ckpt in mine"):
        with_paths([*fit, "--checkpoint.dirpath", "mine"])
    Path("mine/last.ckpt").touch()
    assert with_paths([*fit, "--checkpoint.dirpath", "mine"])[3] == "mine/last.ckpt"


def test_a_word_that_is_no_checkpoint_stays():
    assert with_paths(["--data.root", "last", "--ckpt_path", "a.ckpt"]) == [
        "--data.root",
        "last",
        "--ckpt_path",
        "a.ckpt",
    ]


def test_a_checkpoint_alone_brings_model_data_and_settings():
    folder = run("SimCLR")
    path = folder / "checkpoints/last.ckpt"
    short = trainer(".", max_epochs=1)
    short.fit(SimCLR(**TINY, warmup_epochs=0), loader(16))
    short.save_checkpoint(path)
    more = ["--ckpt_path", str(path), "--trainer.max_epochs", "3"]
    assert completed("fit", more) == ["--config", str(folder / "config.yaml"), *more]
    whole = ["--model", "SimCLR", "--data", "Digits", *more]
    assert completed("fit", whole) == whole
    model, given, data, config, *rest = completed("validate", more[:2])
    assert (model, data, rest) == ("--model", "--data", more[:2])
    assert json.loads(given)["class_path"].endswith("SimCLR")
    assert json.loads(config) == {"class_path": "Digits", "init_args": {}}
    assert completed("validate", [*more[:2], "--data", "CIFAR10"])[2:] == [*more[:2], "--data", "CIFAR10"]

    assert nothing_left(str(path), trainer(".", max_epochs=2)) is None
    assert nothing_left(str(path), trainer(".", max_epochs=-1)) is None
    assert "1 epochs, and --trainer.max_epochs is 1; pass more" in nothing_left(str(path), trainer(".", max_epochs=1))
    assert "--trainer.max_steps is 2" in nothing_left(str(path), trainer(".", max_epochs=9, max_steps=2))


def test_a_run_goes_on_in_its_folder_from_its_last_checkpoint_alone():
    folder = run("SimCLR", names=("last", "best"))
    last, best = (str(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert goes_on_in(last, None) == goes_on_in(last, str(Path.cwd())) == goes_on_in(last, ".") == folder
    assert goes_on_in(last, "elsewhere") is None
    assert goes_on_in(best, None) is None  # or what was trained after it would be overwritten
    assert goes_on_in("strange/last.ckpt", None) is None
    assert goes_on_in(None, None) is None


def test_duration_counts_on_in_the_same_run_alone():
    state = {"started": "2026-11-24T12:00:00+00:00", "seconds": 50.0}
    for goes_on, seconds in ((True, 50), (False, 0)):
        record = RunRecord(goes_on)
        record.load_state_dict(state)
        record.on_fit_start(None, None)
        assert record.state_dict()["seconds"] == pytest.approx(seconds, abs=1)
        assert (record.started == state["started"]) == goes_on
