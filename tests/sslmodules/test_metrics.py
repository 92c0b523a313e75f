import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from sslmodules.metrics import knn_scores, rank_me, spread


def test_knn_equals_scikit_learns_with_the_same_weights():
    torch.manual_seed(0)
    bank, queries = torch.randn(200, 8), torch.randn(50, 8)
    labels = torch.randint(0, 5, (200,))
    votes = knn_scores(queries, bank, labels, num_classes=5, k=15, temperature=0.07)
    peer = KNeighborsClassifier(
        15, metric="cosine", algorithm="brute", weights=lambda d: torch.tensor((1 - d) / 0.07).exp().numpy()
    )
    peer.fit(bank.numpy(), labels.numpy())
    assert votes.argmax(1).tolist() == peer.predict(queries.numpy()).tolist()
    shares = votes / votes.sum(1, keepdim=True)
    torch.testing.assert_close(
        shares, torch.tensor(peer.predict_proba(queries.numpy()), dtype=torch.float), atol=1e-5, rtol=1e-4
    )


def test_knn_with_one_neighbour_knows_what_it_has_seen():
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(0, 9, (64,))
    assert torch.equal(knn_scores(x, x, y, 9, k=1).argmax(1), y)


def test_unlabeled_entries_of_the_bank_do_not_vote():
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]), dim=1)
    votes = knn_scores(torch.tensor([[1.0, 0.0]]), bank, torch.tensor([-1, 0, 1]), num_classes=2, k=3)
    assert votes.argmax() == 1
    assert votes.isfinite().all()


def test_knn_is_finite_at_small_temperatures():
    assert knn_scores(torch.eye(3), torch.eye(3), torch.arange(3), 3, temperature=1e-3).isfinite().all()


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_me_counts_equal_directions(rank):
    features = torch.zeros(16, 8)
    features[:rank, :rank] = torch.eye(rank)
    assert rank_me(features).item() == pytest.approx(rank, rel=1e-3)


def test_spread_is_one_on_the_sphere_and_zero_at_a_point():
    torch.manual_seed(0)
    assert spread(torch.randn(4000, 64)).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(10, 64) * math.pi).item() == pytest.approx(0, abs=1e-6)
