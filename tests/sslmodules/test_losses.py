import math

import pytest
import torch
from torch.nn import functional as F

from sslmodules.losses import info_nce, mutual_information_bound, nt_xent


def dense_nt_xent(z1, z2, temperature):
    """SimCLR's Algorithm 1, with the whole matrix and PyTorch's own cross-entropy."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(similarity, (torch.arange(len(z)) + len(z1)) % len(z))


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 0.2395448), (0.1, 9.0796e-5)])
def test_nt_xent_of_two_orthogonal_identical_pairs(temperature, expected):
    loss = nt_xent(torch.eye(2), torch.eye(2), temperature)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / temperature)), rel=1e-5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_of_equal_projections_is_the_log_of_the_candidates():
    z = torch.ones(5, 3)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(2 * 5 - 1), rel=1e-6)


@pytest.mark.parametrize("block", [1, 100, 10**9])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_nt_xent_and_its_gradient_equal_the_dense_form(block, temperature):
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 17, 6, dtype=torch.double)
    z1.requires_grad_(), z2.requires_grad_()
    expected = dense_nt_xent(z1, z2, temperature)
    gradients = torch.autograd.grad(expected, [z1, z2])
    loss = nt_xent(z1, z2, temperature, block=block)
    torch.testing.assert_close(loss, expected)
    for ours, dense in zip(torch.autograd.grad(loss, [z1, z2]), gradients, strict=True):
        torch.testing.assert_close(ours, dense)


def test_chunked_gradient_equals_the_dense_one_at_batch_2048():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 2048, 32)
    z1.requires_grad_(), z2.requires_grad_()
    gradients = torch.autograd.grad(dense_nt_xent(z1, z2, 0.1), [z1, z2])
    chunked = torch.autograd.grad(nt_xent(z1, z2, 0.1, block=2**18), [z1, z2])
    for ours, dense in zip(chunked, gradients, strict=True):
        assert (ours - dense).abs().max() <= 1e-6 * max(1.0, dense.abs().max().item())
        torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.01, 1e-3])
def test_losses_and_gradients_are_finite_at_small_temperatures(temperature):
    torch.manual_seed(0)
    q, k = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4)
    opposite = nt_xent(q, -q.detach(), temperature)  # the worst case: the positive is the least similar of all
    for loss in (
        nt_xent(q, k, temperature),
        opposite,
        info_nce(q, k, k, temperature),
        info_nce(q, k, None, temperature),
    ):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, q, retain_graph=True)[0].isfinite().all()


def test_losses_compute_in_fp32_under_autocast_and_for_half_inputs():
    torch.manual_seed(0)
    q, k, queue = torch.randn(8, 16), torch.randn(8, 16), F.normalize(torch.randn(20, 16), dim=1)
    expected = [nt_xent(q, k), info_nce(q, k, queue), info_nce(q, k)]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close([nt_xent(q, k), info_nce(q, k, queue), info_nce(q, k)], expected, rtol=0, atol=0)
    half = nt_xent(q.bfloat16(), k.bfloat16())
    torch.testing.assert_close(half, nt_xent(q.bfloat16().float(), k.bfloat16().float()), rtol=0, atol=0)


def test_info_nce_with_an_orthogonal_queue():
    q = torch.eye(40)[:8]
    loss, accuracy = info_nce(q, q, torch.eye(40)[8:], temperature=0.2, with_accuracy=True)
    assert loss.item() == pytest.approx(0.1952495, rel=1e-5)
    assert accuracy == 1


@pytest.mark.parametrize("block", [7, 10**9])
def test_info_nce_with_a_queue_equals_cross_entropy_on_label_0(block):
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 5, dtype=torch.double)
    q.requires_grad_(), k.requires_grad_()
    queue = F.normalize(torch.randn(11, 5, dtype=torch.double), dim=1)
    nq, nk = F.normalize(q, dim=1), F.normalize(k, dim=1)
    logits = torch.cat([(nq * nk).sum(1, keepdim=True), nq @ queue.T], 1) / 0.2
    assert logits.shape == (6, 1 + 11)
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    loss, accuracy = info_nce(q, k, queue, 0.2, with_accuracy=True, block=block)
    torch.testing.assert_close(loss, expected)
    assert accuracy == (logits.argmax(1) == 0).double().mean()
    for ours, theirs in zip(torch.autograd.grad(loss, [q, k]), torch.autograd.grad(expected, [q, k]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_info_nce_passes_gradient_to_shared_negatives_where_they_want_it():
    torch.manual_seed(0)
    q, k, shared = torch.randn(3, 6, 5, dtype=torch.double).unbind()
    shared.requires_grad_()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ shared.T], 1)
    expected = torch.autograd.grad(F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)), shared)[0]
    loss = info_nce(q, k, shared, temperature=1.0, normalize=False)
    torch.testing.assert_close(torch.autograd.grad(loss, shared)[0], expected)


def test_info_nce_in_the_batch_of_orthonormal_queries_is_moco_v3s_value():
    loss = info_nce(torch.eye(4), torch.eye(4), temperature=0.2)
    assert 2 * 0.2 * loss.item() == pytest.approx(0.0080049, rel=1e-4)


def test_info_nce_with_own_negatives_equals_shared_ones_repeated():
    torch.manual_seed(0)
    q, k, shared = torch.randn(6, 5), torch.randn(6, 5), F.normalize(torch.randn(11, 5), dim=1)
    expected = info_nce(q, k, shared, with_accuracy=True)
    torch.testing.assert_close(info_nce(q, k, shared.expand(6, -1, -1), with_accuracy=True), expected)


def test_without_normalisation_and_temperature_zero_scores_give_the_log_of_the_candidates():
    zero = torch.zeros(3, 4)
    loss = info_nce(zero, torch.randn(3, 4), torch.randn(3, 128, 4), temperature=1.0, normalize=False)
    assert loss.item() == pytest.approx(math.log(129), rel=1e-6)


def test_accuracy_counts_the_rows_whose_positive_is_nearest():
    z1 = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    z2 = torch.tensor([[1.0, 0, 0], [1, 0.1, 0]])  # the second image's other view lies with the first image
    _, accuracy = nt_xent(z1, z2, with_accuracy=True)
    assert accuracy == 0.75  # only the misplaced view is nearer to the first image than to its own


def test_the_bound_is_log_n_minus_the_loss():
    assert mutual_information_bound(torch.tensor(0.5), 8).item() == pytest.approx(math.log(8) - 0.5)


def test_the_queue_is_not_copied_and_not_kept_for_backward():
    queue = F.normalize(torch.randn(50_000, 16), dim=1)
    q, k = torch.randn(2, 16, requires_grad=True), torch.randn(2, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        info_nce(q, k, queue)
    assert max(t.numel() for t in saved) < queue.numel()


@pytest.mark.parametrize("bad", [torch.zeros(3, 4), torch.zeros(2, 5), torch.zeros(2, 3, 4)])
def test_shapes_that_do_not_belong_together_are_named(bad):
    with pytest.raises(ValueError, match=r"expected two \(B, d\) matrices"):
        nt_xent(torch.zeros(2, 4), bad)
    with pytest.raises(ValueError, match="shape"):
        info_nce(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(5, 3))
