"""``sslmodules compare``: one table of several runs, from the results that they wrote at their end."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from sslmodules.cli import exit_with
from sslmodules.runs import RUNS, read_results, run_prefix

WIDTH = 100  # characters in a line, where that can be had


class Column(NamedTuple):
    """A column of the table."""

    read: Callable[[dict[str, Any]], Any]  # a run's results -> value; None where the run has none
    show: Callable[[Any], str] = str
    is_measured: bool = True  # aligned to the right, and sorted from the highest


def run(name: str, args: list[str]) -> None:
    """Run ``sslmodules compare``."""
    parser = ArgumentParser(prog=f"sslmodules {name}", description=compare.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with values of these options")
    parser.add_argument("runs", nargs="*", type=str, help=f"folders of runs, such as {RUNS}/*; by default all")
    parser.add_argument("--sort", default="date", help="name of a column, such as probe or duration")
    try:
        given = parser.parse_args(args)
    except ArgumentError as error:
        exit_with(error.message, status=2)
    compare(given.runs or sorted(Path(RUNS).glob("*")), given.sort)


def compare(folders: Sequence[str | Path], sort: str = "date") -> None:
    """Print one table of several runs: what each trained, and what it reached at its end."""
    runs, without = {}, []
    for folder in folders:
        try:
            runs[str(folder).rstrip("/")] = read_results(folder)
        except (FileNotFoundError, ValueError) as error:
            without.append(str(error))
    if runs:
        print(table(runs, sort))
    print("\n".join(without), end="\n" if without else "", file=sys.stderr)
    if not runs:
        exit_with(f"there is no run to compare; pass folders of runs that have ended, such as {RUNS}/*")


def table(runs: Mapping[str, dict[str, Any]], sort: str = "date", width: int = WIDTH) -> str:
    """Return a table of runs with aligned columns.

    Where a line is longer than ``width``, the text that all runs have in common is said once above the table; where it
    still is, method and date are left out if the names of the runs tell both.

    Args:
        runs: folder -> results.
        sort: name of a column, or ``"run"``. What was measured is sorted from the highest, all else from the lowest;
            runs that lack the value come last.
        width: of a line, in characters.

    Raises:
        ValueError: there is no such column.
    """
    found = columns(list(runs.values()))
    names = {"run": "run"} | {name.lower(): name for name in found}
    if sort.lower() not in names:
        near = difflib.get_close_matches(sort.lower(), names, n=1)
        hint = f"did you mean {names[near[0]]}?" if near else f"there are {', '.join(names.values())}"
        raise ValueError(f"--sort {sort}: the table of these runs has no such column; {hint}")
    order = sorted(runs)
    if sort.lower() != "run":
        by = found[names[sort.lower()]]
        known = [folder for folder in order if by.read(runs[folder]) is not None]
        known.sort(key=lambda folder: by.read(runs[folder]), reverse=by.is_measured)
        order = known + [folder for folder in order if folder not in known]
    short = {folder: Path(folder).name for folder in order}
    cells = {"run": [short[f] if len(set(short.values())) == len(order) else f for f in order]}
    for name, column in found.items():
        values = [column.read(runs[folder]) for folder in order]
        cells[name] = ["-" if value is None else column.show(value) for value in values]
    lines, common = _lines(cells, found), ""
    if len(order) > 1 and max(map(len, lines)) > width:
        same = [name for name, c in found.items() if not c.is_measured and len(set(cells[name])) == 1]
        common = ", ".join(f"{name} {cells.pop(name)[0]}" for name in same)
        lines = _lines(cells, found)
    if max(map(len, lines)) > width and all(_is_named_by_us(folder, runs[folder]) for folder in order):
        lines = _lines({name: values for name, values in cells.items() if name not in ("method", "date")}, found)
    return "\n".join([*([common] if common else []), *lines])


def columns(runs: Sequence[dict[str, Any]]) -> dict[str, Column]:
    """Return the columns that runs have values for: what each is, what was measured, how long it took and when.

    Args:
        runs: results of each.
    """

    def metric(name: str) -> Column:
        return Column(lambda run: run["metrics"]["last"].get(name), _percent)

    found = {
        "method": Column(lambda run: run["method"], is_measured=False),
        "encoder": Column(lambda run: run["encoder"]["name"], is_measured=False),
        "data": Column(_data, is_measured=False),
        "epochs": Column(lambda run: run["epochs"]),
        "probe": metric("linear_probe"),
        "10%": metric("linear_probe_10_percent"),
        "1%": metric("linear_probe_1_percent"),
        "kNN": metric("knn"),
    }
    found |= {name: metric(name) for name in dict.fromkeys(run["measure"] for run in runs) if name}  # of evaluations
    found["best"] = Column(lambda run: run["metrics"]["best"].get(run["measure"]), _percent)
    found["duration"] = Column(lambda run: run["duration"], duration)
    found["date"] = Column(lambda run: run["started"], lambda started: started[:16].replace("T", " "), False)
    return {name: column for name, column in found.items() if any(column.read(run) is not None for run in runs)}


def duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    >>> [duration(s) for s in (9.4, 75, 90_000)]
    ['0:00:09', '0:01:15', '25:00:00']
    """
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{left:02d}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _data(results: dict[str, Any]) -> str:
    return " ".join([results["data"]["class"], *Path(results["data"]["root"] or "").parts[-1:]])


def _is_named_by_us(folder: str, results: dict[str, Any]) -> bool:
    return Path(folder).name.startswith(f"{run_prefix(results['method'])}-{results['started'][:10]}")


def _lines(cells: Mapping[str, list[str]], found: Mapping[str, Column]) -> list[str]:
    whole = {name: [name, *values] for name, values in cells.items()}
    sizes = {name: max(map(len, values)) for name, values in whole.items()}
    right = {name for name in whole if name in found and found[name].is_measured}
    padded = [
        [value.rjust(sizes[name]) if name in right else value.ljust(sizes[name]) for value in values]
        for name, values in whole.items()
    ]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
