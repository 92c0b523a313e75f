"""One table of several runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from sslmodules import cli
from sslmodules.cli.compare import table
from sslmodules.runs import write_results


def results(method="SimCLR", encoder="resnet18", data="ImageFolder", epochs=100, day=1, **metrics):
    return {
        "method": method,
        "encoder": {"name": encoder},
        "data": {"class": data, "root": "somewhere/photos" if data == "ImageFolder" else None},
        "epochs": epochs,
        "started": f"2026-11-{day:02d}T15:33:09+01:00",
        "duration": 60 * epochs,
        "measure": None,
        "metrics": {"last": metrics, "best": {}},
    }


PROBED = {"linear_probe": 0.993, "linear_probe_10_percent": 0.939, "linear_probe_1_percent": 0.7, "knn": 0.98}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def test_runs_stand_in_one_table(folder, capsys):
    names = ["simclr-2026-11-01-153309", "moco-2026-11-02-153309", "mae-2026-11-03-153309"]
    found = [
        results(**PROBED),
        results("MoCo", day=2, **{**PROBED, "linear_probe": 0.5}),
        results("MAE", "vit_tiny", "Digits", epochs=9, day=3),
    ]
    for name, each in zip(names, found, strict=True):
        (folder / name).mkdir(parents=True)
        write_results(folder / name, each)
    (folder / "dino-d").mkdir()
    cli.main(["compare", *map(str, folder.glob("*"))])
    out, err = capsys.readouterr()
    header, *lines = out.splitlines()
    assert header.split() == ["run", "encoder", "data", "epochs", "probe", "10%", "1%", "kNN", "duration"]
    assert [line.split()[0] for line in lines] == names  # by date
    assert all(len(line) == len(header) <= 100 for line in lines)
    said = ["resnet18", "ImageFolder", "photos", "100", "99.3%", "93.9%", "70.0%", "98.0%", "1:40:00"]
    assert lines[0].split()[1:] == said
    assert lines[2].split()[4:8] == ["-"] * 4
    assert err == "runs/dino-d: no results.json, so the run did not end, or is no run\n"
    cli.main(["compare", "--sort", "Probe"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names
    cli.main(["compare", "--sort", "epochs"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("mae")
    wide = table(dict(zip(names, found, strict=True)), width=200).splitlines()
    assert wide[0].split()[1:3] == ["method", "encoder"]
    assert wide[0].index("date") == wide[1].index("2026-11-01 15:33") == wide[2].index("2026-11-02 15:33")


def test_what_is_common_is_said_once_where_lines_get_long():
    evaluated = {**results("LinearProbe", day=2), "measure": "accuracy"}
    evaluated["metrics"] = {"last": {"accuracy": 0.5}, "best": {"accuracy": 0.75}}
    runs = {
        f"runs/{name}-2026-11-0{found['started'][9]}-153309": found
        for name, found in {"simclr": results(**PROBED), "linear_probe": evaluated}.items()
    }
    common, header, *lines = table(runs).splitlines()
    assert common == "encoder resnet18, data ImageFolder photos"
    assert header.split() == ["run", "epochs", "probe", "10%", "1%", "kNN", "accuracy", "best", "duration"]
    assert lines[1].split()[2:8] == ["-", "-", "-", "-", "50.0%", "75.0%"]
    assert all(len(line) <= 100 for line in [header, *lines])
    assert table(runs, width=300).splitlines()[0].split()[2] == "encoder"


def test_a_column_that_there_is_not_is_named_with_the_nearest():
    for wrong, said in (("prob", "did you mean probe?"), ("zzz", "there are run, method, encoder")):
        with pytest.raises(ValueError, match=rf"--sort {wrong}: .* no such column; {said}"):
            table({"a": results(**PROBED)}, wrong)


def test_an_unknown_option_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--srot", "probe"])
    assert capsys.readouterr().err.splitlines() == ["sslmodules: error: unrecognized arguments: --srot"]


def test_without_runs_there_is_one_sentence(folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare"])
    assert "there is no run to compare" in capsys.readouterr().err


def test_runs_in_several_folders_keep_their_paths():
    text = table({"a/run": results(), "b/run": results()})
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["a/run", "b/run"]


def test_the_table_does_not_wait_for_torch():
    code = "import sys; from sslmodules.cli import compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
