"""An evaluation as a table, and as one HTML file that needs no other: charts are inline SVG, pictures inline PNG."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from sslmodules.evaluation.robustness import (
    accuracy_by_severity,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from sslmodules.views.corruptions import CORRUPTIONS, SEVERITIES

# Okabe, Ito: told apart with any colour vision. Then hues for more classes than these.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#666666")
WIDTH, HEIGHT = 460, 280  # px of a chart
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 40  # px around its axes
RANDOM = "random"  # initialisation
SUPERVISED = "supervised"
PALE = 0.4
PLACES = {  # rows of the table: axis and value
    "segmentation, mean IoU": ("segmentation", "mean_iou"),
    "segmentation, accuracy of pixels": ("segmentation", "pixel_accuracy"),
    "detection, mAP": ("detection", "map"),
    "detection, mAP at IoU 0.5": ("detection", "map_50"),
}
NUMBERED = ("stages", "fractions")
NAMED_CLASSES = 20  # in a legend at most

Series = Mapping[str, Sequence[float | None]]  # values in [0, 1] by the name of the encoder, one a tick
Table = list[tuple[str, list[str]]]  # a name and a cell for each encoder


# --- tables -------------------------------------------------------------------------------------------------------


def summary(report: Mapping[str, Any]) -> Table:
    """Rows of the table: what was measured, and for each encoder its value.

    Args:
        report: as in ``report.json``.
    """
    results = [entry["results"] for entry in report["encoders"].values()]
    rows: Table = []

    def row(name: str, value: Callable[[Mapping[str, Any]], float | None], form: str = ".1%") -> None:
        values = [value(result) for result in results]
        if any(v is not None for v in values):
            rows.append((name, ["-" if v is None or math.isnan(v) else format(v, form) for v in values]))

    def nested(axis: str, key: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda result: result.get(axis, {}).get(key)

    row("linear probe", lambda r: r.get("linear"))
    row("kNN", lambda r: r.get("knn"))
    row("clusters, NMI", lambda r: r.get("nmi"), ".3f")
    for fraction in keys(results, "fractions"):
        row(f"linear probe, {percent(fraction)} of the labels", nested("fractions", fraction))
    for stage in keys(results, "stages"):
        row(f"linear probe of stage {stage}", nested("stages", stage))
    reference = report["encoders"].get(report["reference"], {}).get("results", {})
    for i, severity in enumerate(SEVERITIES):
        row(
            f"corrupted, severity {severity}",
            lambda r, i=i: accuracy_by_severity(r["corruptions"])[i] if corrupted(r) else None,  # type: ignore[misc]
        )
    if corrupted(reference):
        row("mCE", lambda r: _mce(r, reference))
        row("relative mCE", lambda r: _relative_mce(r, reference))
    row("transfer, linear probe", nested("transfer", "linear"))
    row("transfer, kNN", nested("transfer", "knn"))
    for name, (axis, value) in PLACES.items():
        row(name, lambda r, axis=axis, value=value: r.get(axis, {}).get("values", {}).get(value))  # type: ignore[misc]
    for metric in keys(results, "pretext"):
        row(f"pretext task, {metric}", nested("pretext", metric), ".3f")
    return rows


def keys(results: Sequence[Mapping[str, Any]], axis: str) -> list[str]:
    """Names under which any encoder has a value of an axis, in their order; numbers of several encoders by size.

    >>> keys([{"stages": {"1": 0.4, "11": 0.5}}, {"stages": {"0": 0.3, "1": 0.4}}], "stages")
    ['0', '1', '11']
    """
    found = list(dict.fromkeys(key for result in results for key in result.get(axis, {})))
    return sorted(found, key=float) if axis in NUMBERED else found


def corrupted(result: Mapping[str, Any]) -> bool:
    """Whether an encoder has been measured under all corruptions."""
    return len(result.get("corruptions", ())) == len(CORRUPTIONS)


def percent(fraction: str) -> str:
    """A fraction as JSON has it for a key, for the eye.

    >>> percent("0.01")
    '1%'
    """
    return f"{100 * float(fraction):.3g}%"


def _mce(result: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    if not corrupted(result):
        return None
    return mean_corruption_error(result["corruptions"], reference["corruptions"])


def _relative_mce(result: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    if not corrupted(result):
        return None
    return relative_mean_corruption_error(
        result["corruptions"], result["clean_error"], reference["corruptions"], reference["clean_error"]
    )


def plain_table(rows: Table, names: Sequence[str]) -> str:
    """The table for the terminal.

    >>> print(plain_table([("kNN", ["91.0%", "9.1%"])], ["SimCLR", "random"]))
         SimCLR  random
    kNN   91.0%    9.1%
    """
    first = max(len(name) for name, _ in rows)
    widths = [max(len(name), *(len(cells[i]) for _, cells in rows)) for i, name in enumerate(names)]
    lines = [("", list(names)), *rows]
    return "\n".join(
        f"{name:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, cells in lines
    )


def markdown_table(rows: Table, names: Sequence[str]) -> str:
    """The table in Markdown.

    >>> print(markdown_table([("kNN", ["91.0%", "9.1%"])], ["SimCLR", "random"]))
    | | SimCLR | random |
    | --- | ---: | ---: |
    | kNN | 91.0% | 9.1% |
    """
    lines = [["", *names], ["---", *["---:"] * len(names)], *([name, *cells] for name, cells in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")


def html_table(rows: Table, names: Sequence[str]) -> str:
    """The table in HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


# --- charts -------------------------------------------------------------------------------------------------------


def line_chart(title: str, axis: str, ticks: Sequence[str], series: Series) -> str:
    """Lines of accuracies over ordered ticks, as SVG; a value that is missing is left out.

    Args:
        title: of the chart.
        axis: what the ticks are.
        ticks: names along the x axis.
        series: by encoder, one value a tick.
    """
    values = [v for line in series.values() for v in line if v is not None]
    low, high = math.floor(min(values) * 10) / 10, math.ceil(max(values) * 10) / 10
    low, high = (low - 0.1, high + 0.1) if low == high else (low, high)
    step = (WIDTH - LEFT - RIGHT) / len(ticks)
    marks = []
    for (color, opacity), (name, line) in zip(shades(list(series)), series.items(), strict=True):
        places = [(LEFT + step * (i + 0.5), _height(v, low, high), v) for i, v in enumerate(line) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{color}" opacity="{opacity}" stroke-width="2"/>')
        marks += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}" opacity="{opacity}">'
            f"<title>{escape(name)}: {v:.1%}</title></circle>"
            for x, y, v in places
        ]
    return _figure(title, _axes(axis, ticks, low, high) + "".join(marks), _legend(list(series)))


def bar_chart(title: str, ticks: Sequence[str], series: Series) -> str:
    """Groups of bars of accuracies, as SVG; the arguments as of :func:`line_chart`."""
    high = math.ceil(max(v for line in series.values() for v in line if v is not None) * 10) / 10 or 0.1
    step = (WIDTH - LEFT - RIGHT) / len(ticks)
    width = 0.8 * step / len(series)
    bars = []
    for number, ((color, opacity), (name, line)) in enumerate(zip(shades(list(series)), series.items(), strict=True)):
        for i, value in enumerate(line):
            if value is None:
                continue
            x, y = LEFT + step * (i + 0.1) + width * number, _height(value, 0, high)
            bars.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{0.92 * width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
                f'fill="{color}" opacity="{opacity}"><title>{escape(name)}: {value:.1%}</title></rect>'
            )
    return _figure(title, _axes("", ticks, 0, high) + "".join(bars), _legend(list(series)))


def scatter_chart(title: str, points: Sequence[Sequence[float]], labels: Sequence[int], classes: Sequence[str]) -> str:
    """Points in the plane, coloured by class, as SVG without axes: only who is near whom has a meaning.

    Args:
        title: of the chart.
        points: (x, y).
        labels: the class of each.
        classes: names of the classes; a legend shows up to 20.
    """
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    scale = min((WIDTH - 20) / ((right - left) or 1), (HEIGHT - 20) / ((high - low) or 1))
    palette = colors(len(classes))
    dots = "".join(
        f'<circle cx="{WIDTH / 2 + (x - (left + right) / 2) * scale:.1f}" r="2.5" fill-opacity="0.75" '
        f'cy="{HEIGHT / 2 + (y - (low + high) / 2) * scale:.1f}" fill="{palette[label]}">'
        f"<title>{escape(classes[label])}</title></circle>"
        for (x, y), label in zip(points, labels, strict=True)
    )
    legend = [(name, color, 1.0) for name, color in zip(classes, palette, strict=True)]
    return _figure(title, dots, legend if len(classes) <= NAMED_CLASSES else [])


def colors(count: int) -> list[str]:
    """So many colours: those of the palette, or hues around the circle where it does not suffice."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    return [f"hsl({360 * i / count:.0f}, 70%, {40 + 15 * (i % 2)}%)" for i in range(count)]


def shades(encoders: Sequence[str]) -> list[tuple[str, float]]:
    """Colour and opacity of each encoder; beside a trained one, the same at random initialisation is paler.

    >>> shades(["MAE", "random MAE", "DINO"])
    [('#0072b2', 1.0), ('#0072b2', 0.4), ('#d55e00', 1.0)]
    """
    trained = [name.removeprefix(f"{RANDOM} ") for name in encoders]
    trained = [short if short in encoders else name for name, short in zip(encoders, trained, strict=True)]
    own = dict(zip(dict.fromkeys(trained), colors(len(set(trained))), strict=True))
    return [(own[of], 1.0 if of == name else PALE) for name, of in zip(encoders, trained, strict=True)]


def _legend(encoders: Sequence[str]) -> list[tuple[str, str, float]]:
    return [(name, *shade) for name, shade in zip(encoders, shades(encoders), strict=True)]


def _height(value: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _axes(axis: str, ticks: Sequence[str], low: float, high: float) -> str:
    bottom = HEIGHT - BOTTOM
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if high - low < 6.5 * step)
    parts = []
    for i in range(math.floor((high - low) / step + 1e-6) + 1):
        value = low + step * i
        y = _height(value, low, high)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.0%}</text>')
    width = (WIDTH - LEFT - RIGHT) / len(ticks)
    parts += [
        f'<text x="{LEFT + width * (i + 0.5):.1f}" y="{bottom + 16}" text-anchor="middle">{escape(tick)}</text>'
        for i, tick in enumerate(ticks)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join(parts) + f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axis)}</text>'


def _figure(title: str, marks: str, named: Sequence[tuple[str, str, float]]) -> str:
    legend = "".join(
        f'<span><i style="background:{color};opacity:{opacity}"></i>{escape(name)}</span>'
        for name, color, opacity in named
    )
    drawn = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{marks}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}<p>{legend}</p></figure>"


# --- the file -----------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .3rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right; font-weight: normal;
  border-bottom: 1px solid #eee; white-space: nowrap; } th:first-child { text-align: left; }
tr:first-child th { font-weight: 600; } .wide { overflow-x: auto; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; } .charts figure { flex: 1 1 26rem; max-width: 30rem; }
figcaption { font-weight: 600; } figure p { margin: .2rem 0; font-size: 13px; }
figure span { margin-right: 1rem; display: inline-block; }
figure i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: #555; } .grid { stroke: #e4e4e4; }
img { max-width: 100%; image-rendering: pixelated; } .note { color: #555; }
"""


def html(report: Mapping[str, Any], folder: Path) -> str:
    """The report as one HTML file, which refers to nothing outside itself.

    Args:
        report: as in ``report.json``.
        folder: that holds the pictures which the report names.
    """
    names = list(report["encoders"])
    results = {name: entry["results"] for name, entry in report["encoders"].items()}
    parts = [
        f"<h1>Evaluation of {escape(', '.join(name for name in names if report['encoders'][name]['path']))}</h1>",
        f'<p class="note">{escape(_what(report))}</p>',
        html_table(summary(report), names),
        f'<p class="note">{escape(explanation(report))}</p>',
        '<h2>Charts</h2><div class="charts">' + "".join(_charts(results)) + "</div>",
    ]
    errors = {name: result["corruptions"] for name, result in results.items() if corrupted(result)}
    if errors:
        rows = [(k.replace("_", " "), [f"{1 - fmean(e[k]):.1%}" for e in errors.values()]) for k in CORRUPTIONS]
        parts.append("<h2>Accuracy by corruption, mean over severities</h2>" + html_table(rows, list(errors)))
    embedded = {name: result["embedding"] for name, result in results.items() if "embedding" in result}
    if embedded:
        charts = [scatter_chart(n, e["points"], e["labels"], report["classes"]) for n, e in embedded.items()]
        parts.append("<h2>Embeddings, by t-SNE</h2>")
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
    pictures = [
        f"<figure><figcaption>{escape(name)}: {escape(caption)}</figcaption>{_inline(folder / file)}</figure>"
        for name, result in results.items()
        for pictured in (result, result.get("segmentation", {}), result.get("detection", {}))
        for caption, file in pictured.get("pictures", {}).items()
    ]
    if pictures:
        parts.append(f'<h2>Pictures</h2><div class="pictures">{"".join(pictures)}</div>')
    head = f'<meta charset="utf-8"/><title>Evaluation</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _inline(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}"/>'


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: the table, and what it rests on."""
    table = markdown_table(summary(report), list(report["encoders"]))
    return f"# Evaluation\n\n{_what(report)}\n\n{table}\n\n{explanation(report)}\n"


def _what(report: Mapping[str, Any]) -> str:
    paths = [f"{name} is {entry['path']}" for name, entry in report["encoders"].items() if entry["path"]]
    return (
        f"{report['data']}: {report['test_images']:,} held-out {report['inputs']} of {len(report['classes'])} classes, "
        f"{report['train_images']:,} to fit on. " + "; ".join(paths) + "."
    )


def explanation(report: Mapping[str, Any]) -> str:
    """What the rows of the table mean."""
    sentences = [
        "Accuracies of classifiers on frozen features: logistic regression (linear probe), and votes of the 20 nearest "
        "neighbours (kNN). NMI is that of k-means clusters with the classes. A random encoder is the same at its "
        "initialisation."
    ]
    if SUPERVISED in report["encoders"]:
        sentences.append("The supervised one was trained with all labels, before the probes saw few or all of them.")
    if any(corrupted(entry["results"]) for entry in report["encoders"].values()):
        sentences.append(
            f"Corrupted are {report['settings']['corrupted_images']:,} of the held-out images, and classified by the "
            f"probe of clean ones; mCE is the error relative to that of {report['reference']}, and relative mCE what "
            "it rises by over that on the same images clean (Hendrycks, Dietterich 2019; without frost, with draws of "
            "our own: not comparable with published numbers)."
        )
    return " ".join(sentences)


def _charts(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    axes: list[tuple[str, Callable[[Mapping[str, Any]], float | None]]] = [
        ("linear", lambda r: r.get("linear")),
        ("kNN", lambda r: r.get("knn")),
        ("NMI", lambda r: r.get("nmi")),
        ("transfer", lambda r: r.get("transfer", {}).get("linear")),
        ("mIoU", lambda r: r.get("segmentation", {}).get("values", {}).get("mean_iou")),
        ("mAP", lambda r: r.get("detection", {}).get("values", {}).get("map")),
        ("corrupted", lambda r: fmean(accuracy_by_severity(r["corruptions"])) if corrupted(r) else None),
    ]
    axes = [(name, value) for name, value in axes if any(value(r) is not None for r in results.values())]
    every = {name: [value(r) for _, value in axes] for name, r in results.items()}
    charts = [bar_chart("Every axis", [name for name, _ in axes], every)]
    for title, axis, shown, tick in (
        ("Linear probe of each stage", "stages", "stage", str),
        ("Linear probe with few labels", "fractions", "share of the labels", percent),
    ):
        ticks = keys(list(results.values()), axis)
        if ticks:
            lines = {name: [r[axis].get(t) for t in ticks] for name, r in results.items() if axis in r}
            charts.append(line_chart(title, shown, [tick(t) for t in ticks], lines))
    lines = {
        n: [1 - r["clean_error"], *accuracy_by_severity(r["corruptions"])] for n, r in results.items() if corrupted(r)
    }
    if lines:
        ticks = ["clean", *map(str, SEVERITIES)]
        charts.append(line_chart("Linear probe on corrupted images", "severity", ticks, lines))
    return charts
