"""Several processes measure into one folder, and nothing of what they found is lost."""

import json
import os
import time
import traceback
from functools import partial

import pytest
import torch

from sslmodules.evaluation.cache import cached
from sslmodules.evaluation.features import Features
from sslmodules.evaluation.files import locked
from sslmodules.evaluation.results import Results
from sslmodules.storage import atomic_path


def in_processes(*tasks):
    """Run each task in a process of its own, all at once, and return their exit statuses."""
    children = []
    for task in tasks:
        child = os.fork()
        if child == 0:
            try:
                task()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def measured(folder, name, start):
    """Measure three encoders' worth of results as evaluate does."""
    while time.time() < start:
        time.sleep(0.001)
    report = Results(folder, {"seed": 0})
    for encoder in (name, "random"):
        found = report.begin(encoder, None if encoder == "random" else f"{name}.ckpt", f"weights of {encoder}")
        for i in range(8):
            report.measure(found, lambda i=i: i / 8, "stages", str(i))
        report.measure(found, lambda: 0.5, "linear")
    report.finish(lambda content: {"report.md": json.dumps(content)})


def test_two_processes_in_one_folder_lose_nothing(tmp_path):
    for pair in range(12):
        folder, start = tmp_path / str(pair), time.time() + 0.05
        statuses = in_processes(*(partial(measured, folder, name, start) for name in ("MoCo", "SimCLR")))
        assert statuses == [0, 0]
        report = json.loads((folder / "report.json").read_text())
        assert set(report["encoders"]) == {"MoCo", "SimCLR", "random"}
        for entry in report["encoders"].values():
            assert entry["results"] == {"stages": {str(i): i / 8 for i in range(8)}, "linear": 0.5}
        assert (folder / "report.md").read_text() == json.dumps(report)
        assert sorted(file.name for file in folder.iterdir()) == ["report.json", "report.md"]


def test_features_are_computed_by_one_process_while_the_other_waits(tmp_path):
    features = Features(torch.rand(5, 3), torch.arange(5), {0: torch.rand(5, 2)})

    def read():
        def compute():
            (tmp_path / f"computed by {os.getpid()}").touch()
            time.sleep(0.2)
            return features

        assert torch.equal(cached(tmp_path / "features" / "key.safetensors", compute).stages[0], features.stages[0])

    assert in_processes(read, read, read) == [0, 0, 0]
    assert len(list(tmp_path.glob("computed by *"))) == 1
    assert [file.name for file in (tmp_path / "features").iterdir()] == ["key.safetensors"]


def test_encoders_of_one_name_and_other_files_stand_side_by_side(tmp_path):
    report = Results(tmp_path, {})
    assert report.begin("SimCLR", "first/last.ckpt", "1") == "SimCLR"
    report.measure("SimCLR", lambda: 0.1, "linear")
    later = Results(tmp_path, {})
    assert later.begin("SimCLR", "second/last.ckpt", "2") == "SimCLR 2"
    later.measure("SimCLR 2", lambda: 0.2, "linear")
    again = Results(tmp_path, {})
    assert again.begin("SimCLR", "second/last.ckpt", "2") == "SimCLR 2"
    assert again.begin("SimCLR", "third/../first/last.ckpt", "3") == "SimCLR"  # trained on since: measured anew
    found = {name: entry["results"] for name, entry in again.content["encoders"].items()}
    assert found == {"SimCLR": {}, "SimCLR 2": {"linear": 0.2}}


def test_one_file_given_twice_is_measured_twice(tmp_path):
    report = Results(tmp_path, {})
    assert [report.begin(f"SimCLR {i}", "a.ckpt", "1") for i in (1, 2)] == ["SimCLR 1", "SimCLR 2"]
    assert [Results(tmp_path, {}).begin(name, None, name) for name in ("random", "random ViT")] == [
        "random",
        "random ViT",
    ]
    assert Results(tmp_path, {}).begin("SimCLR", "a.ckpt", "1") == "SimCLR 1"
    assert Results(tmp_path, {}).begin("random", None, "random ViT") == "random ViT"
    assert Results(tmp_path, {}).begin("random", None, "another", "random MAE") == "random MAE"
    assert Results(tmp_path, {}).begin("random", None, "a third", "random MAE") == "random MAE 2"


def test_results_of_old_weights_do_not_go_to_those_trained_on_since(tmp_path):
    report = Results(tmp_path, {})
    report.begin("SimCLR", "last.ckpt", "1")
    Results(tmp_path, {}).begin("SimCLR", "last.ckpt", "2")
    with pytest.raises(ValueError, match="SimCLR has been trained on"):
        report.measure("SimCLR", lambda: 0.1, "linear")


def test_results_go_on_where_the_report_was_removed_meanwhile(tmp_path):
    report = Results(tmp_path, {"seed": 0})
    report.begin("SimCLR", "a.ckpt", "1")
    report.measure("SimCLR", lambda: 0.1, "linear")
    (tmp_path / "report.json").unlink()
    report.measure("SimCLR", lambda: 0.2, "knn")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["encoders"]["SimCLR"]["results"] == {"linear": 0.1, "knn": 0.2}


@pytest.mark.parametrize(
    "text", ["", '{"settings": {', "[1, 2]", '{"encoders": {}}', '{"settings": {}, "encoders": 3}']
)
def test_a_broken_report_is_one_sentence_with_what_to_do(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=r"report.json is not a report of evaluate .*; remove it") as caught:
        Results(tmp_path, {})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.json").read_text() == text


def test_a_file_that_is_not_finished_does_not_take_the_place_of_the_last_one(tmp_path):
    file = tmp_path / "report.md"
    file.write_text("whole")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as part:
        part.write_text("ha")
        raise KeyboardInterrupt
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_is_held_by_one_process_at_a_time_and_ends_with_it(tmp_path):
    file = tmp_path / "file"

    def killed():
        with locked(file):
            os._exit(0)

    def counted():
        with locked(file):
            inside = tmp_path / "inside"
            inside.touch(exist_ok=False)
            time.sleep(0.02)
            inside.unlink()

    assert in_processes(killed) == [0]
    assert in_processes(*[counted] * 6) == [0] * 6
