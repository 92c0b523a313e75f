"""Folders of runs: their names, the newest checkpoint among them, and the results that each keeps in ``results.json``.

A run is ``<root>/runs/<method>-<date>-<time>`` with ``config.yaml``, ``checkpoints/``, ``results.json`` and the logs.
This module does without torch, so that tables of runs are there at once.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sslmodules.storage import atomic_write

RUNS = "runs"
CONFIG = "config.yaml"
RESULTS = "results.json"
CHECKPOINTS = "checkpoints"
KEYS = {"method", "encoder", "data", "epochs", "measure", "metrics", "started", "duration"}  # that results have
NAMES = ("last", "best")  # of checkpoints, in the place of a path


def run_prefix(method: str) -> str:
    """Return the name of a method's class as the runs of that method carry it.

    >>> [run_prefix(name) for name in ("SimCLR", "MoCoV3", "DINOv2", "LinearProbe")]
    ['simclr', 'mocov3', 'dinov2', 'linear_probe']
    """
    return re.sub(r"(?<=[a-z]{3})(?=[A-Z][a-z]{2})", "_", method).lower()


def new_run(root: str | Path, method: str, now: datetime | None = None) -> Path:
    """Make the folder of a new run, ``<root>/runs/<method>-<YYYY-MM-DD>-<HHMMSS>``, and return its absolute path.

    Runs that start within the same second get ``-2``, ``-3``, ... behind the name.

    Args:
        root: folder that holds ``runs``.
        method: name of the method's class.
        now: when the run starts; None is now.
    """
    name = f"{run_prefix(method)}-{now or datetime.now():%Y-%m-%d-%H%M%S}"
    number = 1
    while True:
        folder = Path(root).absolute() / RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def run_of(checkpoint: str | Path) -> Path | None:
    """Return the absolute path of the run that wrote a checkpoint, two folders above; None where there is no run."""
    run = Path(checkpoint).absolute().parent.parent
    return run if (run / CONFIG).is_file() else None


def run_config(run: str | Path) -> dict[str, Any]:
    """Return the configuration that a run was started with."""
    return yaml.safe_load((Path(run) / CONFIG).read_text(encoding="utf-8"))


def run_method(run: str | Path) -> str | None:
    """Return the name of a run's method, such as ``"SimCLR"``; None where its configuration names none."""
    try:
        return run_config(run)["model"]["class_path"].rsplit(".", 1)[-1]
    except (KeyError, TypeError, yaml.YAMLError):  # another project's
        return None


def find_checkpoint(
    name: str,
    root: str | Path = ".",
    wanted: Callable[[str], bool] | None = None,
    described: str = "",
    option: str = "--ckpt_path",
) -> Path:
    """Return the newest checkpoint of a name among the runs in ``<root>/runs``: the one written last.

    Args:
        name: ``"last"`` or ``"best"``.
        root: folder that holds ``runs``.
        wanted: name of a method -> whether its runs count; None takes all.
        described: the method that is wanted, for the error.
        option: that asked for it, for the error.

    Raises:
        FileNotFoundError: no run has such a checkpoint.
    """
    found = []
    for file in (Path(root) / RUNS).glob(f"*/{CHECKPOINTS}/{name}.ckpt"):
        run = run_of(file)
        method = None if run is None else run_method(run)
        if method is not None and (wanted is None or wanted(method)):
            found.append((file.stat().st_mtime_ns, file))
    if not found:
        of = f" of {described}" if described else ""
        raise FileNotFoundError(
            f"{option} {name}: no run{of} in {Path(root) / RUNS} has a {name}.ckpt; pass the path of a checkpoint, "
            "--trainer.default_root_dir where the runs lie elsewhere, or start a run without this option"
        )
    return max(found)[1]


def set_aside(run: str | Path, config: dict[str, Any]) -> None:
    """Keep what an earlier part of a run wrote before it goes on: ``results-1.json``, and ``config-1.yaml``.

    The results no longer hold for the checkpoint that training goes on to write. The configuration is copied where it
    differs in more than the checkpoint that the run goes on from.

    Args:
        run: the folder.
        config: what the run goes on with.
    """

    def settings(of: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in of.items() if key != "ckpt_path"}

    def kept(path: Path) -> Path:
        numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
        return next(name for name in numbered if not name.exists())

    results, before = Path(run) / RESULTS, Path(run) / CONFIG
    if results.exists():
        results.rename(kept(results))
    if settings(run_config(run)) != settings(config):
        shutil.copyfile(before, kept(before))  # it stays: other processes of the run may be reading it


def write_results(run: str | Path, results: dict[str, Any]) -> Path:
    """Write ``results.json`` of a run in one go, and return its path."""
    path = Path(run) / RESULTS
    with atomic_write(path) as file:
        file.write(json.dumps(results, indent=1).encode())
    return path


def read_results(run: str | Path) -> dict[str, Any]:
    """Return what a run's ``results.json`` holds.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: it cannot be read.
    """
    path = Path(run) / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{run}: no {RESULTS}, so the run did not end, or is no run")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(results, dict) or not results.keys() >= KEYS:
        raise ValueError(f"{path} does not hold the results of a run: it needs {', '.join(sorted(KEYS))}")
    return results
