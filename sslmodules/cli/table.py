"""The table at the end of ``fit``."""

from pathlib import Path

from sslmodules.evaluation import ProbeResult


def table(rows: list[tuple[str, ProbeResult | None]]) -> str:
    """Lay out what probes measured, one encoder a row.

    Args:
        rows: names and results; None where there were no labels.
    """
    first = rows[0][1]
    if first is None:
        return "no labels to probe with: pass a labeled DataModule, or --data.labels true for ImageFolder"
    known = [(name, result) for name, result in rows if result is not None]
    lines = [f"{'':42}  linear probe   kNN"]
    lines += [f"{name:42}  {r.linear:11.1%}  {r.knn:6.1%}" for name, r in known]
    if first.stages:
        lines.append(f"{'linear probe of each stage':42}" + "".join(f"{f'stage {s}':>10}" for s in first.stages))
        lines += [f"{name:42}" + "".join(f"{a:10.1%}" for a in r.stages.values()) for name, r in known]
    lines.append(f"on {first.test_images:,} held-out images, {first.train_images:,} to fit on")
    return "\n".join(lines)


def short(path: str) -> str:
    """A path as seen from the working directory, where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
