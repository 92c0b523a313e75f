"""Classifiers of features beside scikit-learn's."""

import pytest
import torch
from runs import images
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sslmodules import Rotation, metrics
from sslmodules.evaluation import probe
from sslmodules.evaluation.classifiers import accuracy, cluster_nmi, few_labels, linear_classifier
from sslmodules.metrics import knn_scores


def points(count, classes=5, dim=6, seed=0):
    """Noisy features around one corner a class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    return torch.eye(dim)[y] * 2 + torch.randn(count, dim, generator=generator), y


def test_neighbours_of_several_labels_vote_for_each():
    (bank, y), (queries, _) = points(60), points(9, seed=1)
    labels = torch.stack([y == 0, y <= 2, y >= 1, y < 0], 1).long()
    found = knn_scores(queries, bank, labels, 4, k=7, temperature=0.1)
    for query, scores in zip(queries, found, strict=True):
        similarity = F.cosine_similarity(query[None], bank)
        nearest = similarity.argsort(descending=True)[:7]
        weights = (similarity[nearest] / 0.1).exp()
        torch.testing.assert_close(scores, (weights[:, None] * labels[nearest]).sum(0) / weights.sum())


def test_neighbours_are_the_same_in_pieces(monkeypatch):
    (bank, y), (queries, _) = points(50), points(23, seed=1)
    y = torch.where(torch.arange(50) % 4 == 0, -1, y)
    whole = knn_scores(queries, bank, y, 5, k=8)
    monkeypatch.setattr(metrics, "SIMILARITIES", 200)  # four queries at a time
    torch.testing.assert_close(knn_scores(queries, bank, y, 5, k=8), whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(23))


@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_regression_is_scikit_learns_with_classes_that_were_never_seen(classes):
    (x, y), (queries, y_test) = points(80, classes), points(30, classes, seed=1)
    x, y = x[y != 1] if classes > 2 else x, y[y != 1] if classes > 2 else y
    scaler = StandardScaler().fit(x)
    peer = LogisticRegression(max_iter=300, tol=1e-3).fit(scaler.transform(x), y)
    scores = linear_classifier(x, y, classes + 1)(queries)
    assert scores.shape == (30, classes + 1)
    assert accuracy(scores, y_test) == pytest.approx(peer.score(scaler.transform(queries), y_test))
    torch.testing.assert_close(scores.sum(1), torch.ones(30))


def test_several_labels_are_regressed_and_measured_one_by_one():
    (x, y), (queries, y_test) = points(80), points(30, seed=1)
    several, several_test = (torch.stack([y == 0, y <= 2, y > 9, y >= 0], 1).long() for y in (y, y_test))
    scores = linear_classifier(x, several, 4)(queries)
    scaler = StandardScaler().fit(x)
    for label in (0, 1):
        peer = LogisticRegression(max_iter=300, tol=1e-3).fit(scaler.transform(x), several[:, label])
        expected = torch.tensor(peer.predict_proba(scaler.transform(queries))[:, 1]).float()
        torch.testing.assert_close(scores[:, label], expected)
    assert scores[:, 2].eq(0).all()  # never, in training
    assert scores[:, 3].eq(1).all()  # always
    occur = [0, 1, 3]
    expected = average_precision_score(several_test[:, occur], scores[:, occur], average="macro")
    assert accuracy(scores, several_test) == pytest.approx(expected, abs=1e-6)


def test_few_labels_are_as_many_as_said_and_no_share_stands_for_another():
    y = torch.arange(1000) % 10
    drawn = few_labels(y)
    assert {share: len(kept) for share, kept in drawn.items()} == {0.1: 100, 0.01: 10}
    assert y[drawn[0.01]].sort().values.tolist() == list(range(10))
    assert set(drawn[0.01].tolist()) < set(drawn[0.1].tolist())
    assert list(few_labels(y[:999])) == [0.1]  # 1 % is fewer than one image a class
    assert list(few_labels(y[:99])) == []
    assert few_labels(F.one_hot(y)) == {}


def test_clusters_are_compared_with_the_labels():
    x, y = points(60, classes=3)
    x = 5 * torch.eye(6)[y] + 0.01 * x
    assert cluster_nmi(x, y) == pytest.approx(1.0)
    merged = y.clamp_max(1)
    assert cluster_nmi(x, y, clusters=1) == 0
    assert cluster_nmi(x, merged, clusters=3) == pytest.approx(normalized_mutual_info_score(merged, y))
    assert cluster_nmi(x, F.one_hot(y)) == pytest.approx(1.0)  # combinations of labels are classes


def test_the_probe_measures_several_labels_and_clusters():
    def loader(count, seed):
        x, y = images(count, seed=seed)[:]
        return DataLoader(TensorDataset(x, torch.stack([y == 0, y <= 1, y >= 2], 1).long()), 8)

    torch.manual_seed(0)
    method = Rotation("conv4", encoder_args={"widths": (8, 16)}).eval()
    result = probe(method, loader(80, 0), loader(40, 1), clusters=True)
    assert result.linear > 0.9
    assert result.knn > 0.8
    assert 0 < result.nmi <= 1
