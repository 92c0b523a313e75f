"""The final table's numbers, beside scikit-learn's on the same features."""

import sys

import pytest
import torch
from runs import images, loader
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from sslmodules import Rotation
from sslmodules.datamodules import balanced_indices
from sslmodules.evaluation import extract, probe

TINY = {"encoder": "conv4", "encoder_args": {"widths": (4, 8, 8)}}


def accuracy(x, y, x_test, y_test):
    scaler = StandardScaler().fit(x)
    fitted = LogisticRegression(max_iter=300, tol=1e-3).fit(scaler.transform(x), y)
    return fitted.score(scaler.transform(x_test), y_test)


def test_each_stage_is_probed_on_the_mean_of_its_map():
    torch.manual_seed(0)
    method = Rotation(**TINY).eval()
    (x, y), (x_test, y_test) = images(120)[:], images(40, seed=1)[:]
    result = probe(method, loader(120), loader(40, seed=1), stages=5)
    found = result.stages
    assert list(found) == [0, 1, 2]
    with torch.no_grad():
        for stage, value in found.items():
            train, test = (method.features(i, [stage])[0].mean((2, 3)).numpy() for i in (x, x_test))
            assert value == pytest.approx(accuracy(train, y.numpy(), test, y_test.numpy()), abs=0.03)
    assert found[2] == result.linear
    assert probe(method, loader(120), loader(40, seed=1)) == result._replace(stages={})


def test_few_labels_are_those_that_evaluate_draws_and_cost_no_second_reading(monkeypatch):
    torch.manual_seed(0)
    method = Rotation(**TINY).eval()
    (x, y), (x_test, y_test) = images(400)[:], images(40, seed=1)[:]
    read = []
    method.register_forward_hook(lambda *_: read.append(1))
    result = probe(method, loader(400, 400), loader(40, 40, seed=1), few=True)
    assert len(read) == 2
    assert {share: count for share, (count, _) in result.few.items()} == {0.1: 40, 0.01: 4}
    with torch.no_grad():
        features, queries = method(x), method(x_test)
    for share, (_, value) in result.few.items():
        kept = balanced_indices(y, share)
        assert value == pytest.approx(accuracy(features[kept], y[kept], queries, y_test))
    assert probe(method, loader(400, 400), loader(40, 40, seed=1)).few == {}


def test_of_many_stages_some_are_probed_and_the_last_always():
    vit = {"encoder": "vit_tiny_patch16_224", "encoder_args": {"patch_size": 8, "depth": 12, "embed_dim": 12}}
    method = Rotation(**vit, size=16).eval()
    found = probe(method, loader(40), loader(16), stages=5).stages
    assert len(found) == 5
    assert max(found) == 11


def test_without_labels_there_is_nothing_to_probe():
    unlabeled = DataLoader(images(8)[:][0], 4)
    method = Rotation(**TINY).eval()
    assert probe(method, unlabeled, loader(8), stages=2) is None
    assert probe(method, loader(8), unlabeled) is None
    assert extract(method, unlabeled)[0].shape == (0, 0)


def test_reading_shows_its_progress_on_a_terminal_alone(capsys, monkeypatch):
    extract(Rotation(**TINY), loader(16))
    assert "features" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    extract(Rotation(**TINY), loader(16))
    assert "features:   0%" in capsys.readouterr().err
