"""Numbers of the table by hand; charts show what they are given; the file needs no other."""

import re
from xml.etree import ElementTree

import torch
from torchvision.utils import save_image

from sslmodules.evaluation import report as r
from sslmodules.views.corruptions import CORRUPTIONS

NAMES = ["A & <b>", "random"]


def example(folder):
    save_image(torch.rand(3, 4, 4), folder / "views.png")
    errors = {name: [0.1, 0.2, 0.3, 0.4, 0.5] for name in CORRUPTIONS}
    embedding = {"points": [[0, 1], [2, 3], [4, 5]], "labels": [0, 1, 0]}
    one = {
        "linear": 0.95,
        "clean_error": 0.05,
        "knn": 0.9,
        "nmi": 0.5,
        "fractions": {"0.01": 0.4, "1.0": 0.95},
        "stages": {"0": 0.6, "3": 0.7},
        "corruptions": errors,
        "transfer": {"linear": 0.8, "knn": 0.75},
        "pretext": {"loss": 1.2345},
        "embedding": embedding,
        "pictures": {"views": "views.png"},
    }
    two = {
        "linear": 0.5,
        "knn": 0.4,
        "clean_error": 0.5,
        "corruptions": {name: [0.6] * 5 for name in CORRUPTIONS},
        "embedding": embedding,
    }
    return {
        "data": "Digits",
        "classes": ["zero", "one"],
        "settings": {"corrupted_images": 100},
        "inputs": "images",
        "train_images": 1500,
        "test_images": 297,
        "reference": "random",
        "encoders": {NAMES[0]: {"path": "a.ckpt", "results": one}, NAMES[1]: {"path": None, "results": two}},
    }


def test_the_table_holds_every_result(tmp_path):
    rows = dict(r.summary(example(tmp_path)))
    assert rows["linear probe"] == ["95.0%", "50.0%"]
    assert rows["clusters, NMI"] == ["0.500", "-"]
    assert rows["linear probe, 1% of the labels"] == ["40.0%", "-"]
    assert rows["linear probe of stage 3"] == ["70.0%", "-"]
    assert rows["corrupted, severity 5"] == ["50.0%", "40.0%"]
    assert rows["mCE"] == ["50.0%", "100.0%"]  # 1.5 of 3
    assert rows["relative mCE"] == ["250.0%", "100.0%"]  # 1.25 of 0.5
    assert rows["transfer, kNN"] == ["75.0%", "-"]
    assert rows["pretext task, loss"] == ["1.234", "-"]


def test_unfinished_corruptions_are_left_out(tmp_path):
    report = example(tmp_path)
    del report["encoders"][NAMES[0]]["results"]["corruptions"]["fog"]
    rows = dict(r.summary(report))
    assert rows["mCE"] == ["-", "100.0%"]
    assert rows["corrupted, severity 1"] == ["-", "40.0%"]
    r.html(report, tmp_path)


def test_the_file_is_well_formed_and_refers_to_nothing(tmp_path):
    text = r.html(example(tmp_path), tmp_path)
    root = ElementTree.fromstring(text)
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert [e.get("src")[:22] for e in root.iter("img")] == ["data:image/png;base64,"]
    assert not [e for e in root.iter() if e.get("href")]
    headings = [e.text for e in root.iter("h1")]
    assert headings == [f"Evaluation of {NAMES[0]}"]
    titles = [e.text for e in root.iter("figcaption")]
    assert {"Every axis", "Linear probe of each stage", "Linear probe on corrupted images", *NAMES} <= set(titles)
    assert sum(1 for e in root.iter("circle")) == 2 + 2 + 2 * 6 + 2 * 3  # stages, fractions, severities, embeddings


def test_a_report_of_few_results_has_the_charts_of_these(tmp_path):
    report = example(tmp_path)
    for entry in report["encoders"].values():
        entry["results"] = {"linear": entry["results"]["linear"]}
    root = ElementTree.fromstring(r.html(report, tmp_path))
    assert [e.text for e in root.iter("figcaption")] == ["Every axis"]


def test_bars_and_lines_are_as_high_as_their_values():
    bars = ElementTree.fromstring(r.bar_chart("t", ["x", "y"], {"a": [0.5, 1.0], "b": [0.25, None]}))
    heights = [float(bar.get("height")) for bar in bars.iter("rect")]
    assert [h / heights[1] for h in heights] == [0.5, 1, 0.25]
    lines = ElementTree.fromstring(
        r.line_chart("t", "x", ["1", "2", "3"], {"a": [0.6, None, 1.0], "b": [0.8, 0.8, 0.8]})
    )
    a, b = ([float(y) for y in re.findall(r",([\d.]+)", line.get("points"))] for line in lines.iter("polyline"))
    assert len(a) == 2
    assert abs((a[0] + a[1]) / 2 - b[0]) < 0.11
    assert a[0] > a[1]  # downwards


def test_charts_of_equal_values_and_of_one_point_are_drawn():
    ElementTree.fromstring(r.line_chart("t", "x", ["1"], {"a": [1.0]}))
    ElementTree.fromstring(r.bar_chart("t", ["x"], {"a": [0.0]}))
    ElementTree.fromstring(r.scatter_chart("t", [[1.0, 1.0]], [0], ["only"]))


def test_colours_differ_for_any_number_of_classes():
    for count in (1, 8, 9, 100):
        assert len(set(r.colors(count))) == count


def test_markdown_has_the_same_numbers(tmp_path):
    text = r.markdown(example(tmp_path))
    assert "| linear probe | 95.0% | 50.0% |" in text
    assert "1,500 to fit on" in text
