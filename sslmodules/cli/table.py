"""The table at the end of ``fit``, and what it says about the files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslmodules.evaluation import ProbeResult
from sslmodules.runs import RESULTS


def table(rows: list[tuple[str, ProbeResult | None]]) -> str:
    """Lay out what probes measured, one encoder a row.

    Args:
        rows: names and results; None where there were no labels.
    """
    first = rows[0][1]
    if first is None:
        return "no labels to probe with: pass a labeled DataModule, or --data.labels true for ImageFolder"
    known = [(name, result) for name, result in rows if result is not None]
    shares = {f"{share:.0%} of labels": share for share in first.few}
    lines = [f"{'':42}  linear probe" + "".join(f"  {name:>13}" for name in shares) + "     kNN"]
    for name, r in known:
        few = "".join(f"  {r.few[share][1]:13.1%}" for share in shares.values())
        lines.append(f"{name:42}  {r.linear:12.1%}{few}  {r.knn:6.1%}")
    if first.stages:
        lines.append(f"{'linear probe of each stage':42}" + "".join(f"{f'stage {s}':>10}" for s in first.stages))
        lines += [f"{name:42}" + "".join(f"{a:10.1%}" for a in r.stages.values()) for name, r in known]
    kept = "".join(f", {name.split()[0]} of labels: {first.few[share][0]:,}" for name, share in shares.items())
    lines.append(f"on {first.test_images:,} held-out images, {first.train_images:,} to fit on{kept}")
    return "\n".join(lines)


def files(run: Path, results: Mapping[str, Any], validated: bool) -> str:
    """Say which files a run has left, and what is known of each checkpoint.

    Args:
        run: folder of the run.
        results: as in ``results.json``.
        validated: whether there was anything to tell the best epoch by.
    """
    lines = []
    for which, entry in results["checkpoints"].items():
        about = f"epoch {entry['epoch']:,}, step {entry['step']:,}"
        if "monitor" in entry:
            about += f", {entry['monitor']} {entry['value']:.4g}"
        elif results["metrics"]["last"]:
            about += ", measured above"
        lines.append(f"{which} checkpoint   {short(str(run / entry['path']))}  ({about})")
    if validated and "best" not in results["checkpoints"]:
        lines.append(f"best checkpoint   none: without labels nothing tells the best epoch of {results['method']}")
    lines.append(f"results           {short(str(run / RESULTS))}")
    lines.append(f"logs, pictures    {short(str(run))}")
    return "\n".join(lines)


def short(path: str) -> str:
    """A path as seen from the working directory, where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
