"""The oracles of DINO, iBOT, KoLeo, Sinkhorn-Knopp and Gram, and lightly's losses for the same inputs."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslmodules.distillation.center import Center
from sslmodules.distillation.losses import dino_loss, entropy, gram_loss, ibot_loss, koleo, sinkhorn_knopp


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def crops(v=5, b=3, k=7, scale=1.0):
    return scale * torch.randn(v, b, k)


# --- DINO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 64])
def test_uniform_outputs_lose_log_k(k):
    loss = dino_loss(torch.zeros(5, 3, k), torch.full((2, 3, k), 1 / k))
    assert loss.item() == pytest.approx(math.log(k), rel=1e-6)


@pytest.mark.parametrize("n", [0, 1, 6])
def test_the_mean_is_over_the_2n_plus_2_pairs_of_different_crops(n):
    student, targets = crops(2 + n), crops(2, scale=4).softmax(-1)
    logs = (student / 0.1).log_softmax(-1)
    terms = [-(targets[g] * logs[v]).sum(-1).mean() for g in range(2) for v in range(2 + n) if v != g]
    assert len(terms) == 2 * n + 2
    torch.testing.assert_close(dino_loss(student, targets), torch.stack(terms).mean())


def test_no_gradient_of_a_crop_comes_from_the_teacher_of_the_same_crop():
    student = crops(2).requires_grad_()
    targets = torch.stack([torch.full((3, 7), 1 / 7), crops(1)[0].softmax(-1)])
    dino_loss(student, targets, 0.1).backward()
    p = (student / 0.1).softmax(-1)
    torch.testing.assert_close(student.grad, (p - targets.flip(0)) / 0.1 / (2 * 3))


def test_two_half_batches_are_the_whole():
    student, targets = crops(4, 6), crops(2, 6).softmax(-1)
    halves = [dino_loss(s, t) for s, t in zip(student.split(3, 1), targets.split(3, 1), strict=True)]
    torch.testing.assert_close(sum(halves) / 2, dino_loss(student, targets))


def test_half_precision_scores_are_compared_in_fp32():
    student, targets = crops().bfloat16(), crops(2).softmax(-1)
    loss = dino_loss(student, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dino_loss(student.float(), targets))


def test_dino_equals_lightlys():
    loss = pytest.importorskip("lightly.loss")
    theirs = loss.DINOLoss(output_dim=7, teacher_temp=0.07, warmup_teacher_temp_epochs=1)
    ours = Center(7)
    start = torch.randn(7)
    theirs.center.copy_(start)
    ours.value.copy_(start)
    for _ in range(3):  # the centre moves on both sides
        student, teacher = crops(), crops(2)
        ours_value = dino_loss(student, ours(teacher, 0.07), 0.1)
        ours.collect(teacher)
        ours.commit()
        torch.testing.assert_close(ours_value, theirs(list(teacher), list(student), teacher_temp=0.07))
        torch.testing.assert_close(ours.value, theirs.center.flatten())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores are \(4, 3, 7\) and the targets \(2, 2, 7\); expected \(V, B, K\)"):
        dino_loss(crops(4), crops(2, 2))
    with pytest.raises(
        ValueError, match="there are 1 crops for the student and 1 for the teacher; expected at least 2"
    ):
        dino_loss(crops(1), crops(1))


# --- Sinkhorn-Knopp -------------------------------------------------------------------------------------------------


def test_sinkhorn_makes_samples_sum_to_1_and_prototypes_nearly_equal():
    scores = F.normalize(torch.randn(64, 32)) @ F.normalize(torch.randn(16, 32)).T
    few, many = sinkhorn_knopp(scores, 0.07), sinkhorn_knopp(scores, 0.07, iterations=50)
    for q in (few, many):
        torch.testing.assert_close(q.sum(1), torch.ones(64), rtol=0, atol=1e-6)
    assert 2.8 < few.sum(0).min() < 4
    assert 4 < few.sum(0).max() < 5.2
    torch.testing.assert_close(many.sum(0), torch.full((16,), 4.0), rtol=0, atol=1e-3)


def test_sinkhorn_keeps_each_samples_favourite_among_equals_and_is_one_prototype_of_one():
    eye = sinkhorn_knopp(torch.eye(4), 0.05)
    torch.testing.assert_close(eye, torch.eye(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(sinkhorn_knopp(torch.randn(3, 1), 0.05), torch.ones(3, 1))


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e3])
def test_sinkhorn_does_not_overflow_and_a_common_shift_changes_nothing(shift):
    scores = 3 * torch.randn(8, 5)
    q = sinkhorn_knopp(scores + shift, 0.04)
    assert q.isfinite().all()
    torch.testing.assert_close(q, sinkhorn_knopp(scores, 0.04), rtol=1e-2, atol=1e-2)
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.04).shape == (0, 5)


def test_sinkhorn_equals_lightlys():
    swav = pytest.importorskip("lightly.loss.swav_loss")
    scores = torch.rand(12, 6)
    theirs = swav.sinkhorn(scores.clone(), iterations=3, epsilon=0.05)
    torch.testing.assert_close(sinkhorn_knopp(scores, 0.05), theirs, rtol=1e-4, atol=1e-6)


# --- KoLeo ----------------------------------------------------------------------------------------------------------


def test_koleo_of_an_orthonormal_basis_and_of_equal_features():
    assert koleo(torch.eye(4)).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)  # -0.3465736
    equal = koleo(torch.ones(6, 4)).item()
    assert equal == pytest.approx(-math.log((math.sqrt(4) + 1) * 1e-8), abs=1e-3)  # 17.3221


def test_koleo_pushes_nearest_neighbours_apart():
    angle = torch.tensor([0.0, 0.1, 2.0, 4.0], requires_grad=True)
    koleo(torch.stack([angle.cos(), angle.sin()], 1)).backward()
    assert angle.grad[0] > 0 > angle.grad[1]  # down the gradient they part


def test_koleo_of_one_image_is_0():
    x = torch.randn(1, 4, requires_grad=True)
    loss = koleo(x)
    loss.backward()
    assert loss == 0
    assert x.grad.eq(0).all()


def test_koleo_equals_lightlys():
    loss = pytest.importorskip("lightly.loss")
    x = torch.randn(16, 8)
    torch.testing.assert_close(koleo(x), loss.KoLeoLoss()(x))


# --- iBOT -----------------------------------------------------------------------------------------------------------


def masked_patches(images=4, patches=6, k=5):
    mask = torch.rand(images, patches) < 0.4
    mask[0] = False
    mask[1] = True
    return torch.randn(images, patches, k), torch.randn(images, patches, k).softmax(-1), mask


def test_ibot_gathered_is_ibot_dense():
    student, targets, mask = masked_patches()
    per_patch = -(targets * (student / 0.1).log_softmax(-1)).sum(-1)  # (I, N)
    dense = ((per_patch * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()  # over all images, masked or not
    torch.testing.assert_close(ibot_loss(student[mask], targets[mask], mask), dense)


def test_ibot_of_two_half_batches_is_that_of_the_whole():
    student, targets, mask = masked_patches()
    halves = [ibot_loss(student[i][mask[i]], targets[i][mask[i]], mask[i]) for i in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, ibot_loss(student[mask], targets[mask], mask))


def test_ibot_without_masked_patches_is_0_and_another_number_is_refused():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert ibot_loss(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4), mask) == 0
    with pytest.raises(ValueError, match=r"scores are \(2, 4\) and the targets \(2, 4\) for 0 masked patches"):
        ibot_loss(torch.zeros(2, 4), torch.zeros(2, 4), mask)


def test_ibot_equals_lightlys():
    loss = pytest.importorskip("lightly.loss")
    student, _, mask = masked_patches()
    answers = torch.randn(4, 6, 5)
    theirs = loss.IBOTPatchLoss(output_dim=5, teacher_temp=0.07)
    center = Center(5)
    for _ in range(2):
        ours = ibot_loss(student[mask], center(answers[mask], 0.07), mask)
        center.collect(answers[mask])
        center.commit()
        torch.testing.assert_close(ours, theirs(answers[mask], student[mask], mask.view(4, 2, 3)))
        torch.testing.assert_close(center.value, theirs.center.value.flatten())


# --- Gram and entropy -----------------------------------------------------------------------------------------------


def test_gram_is_0_for_equal_rotated_or_rescaled_features_only():
    x = torch.randn(2, 9, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    for y in (x, x @ rotation, x * torch.rand(2, 9, 1).add(0.1), F.pad(x, (0, 3))):
        assert gram_loss(x, y).item() == pytest.approx(0, abs=1e-10)
    assert gram_loss(x, torch.randn(2, 9, 4)) > 0.1
    with pytest.raises(ValueError, match=r"features are \(2, 9, 4\) and \(2, 8, 4\)"):
        gram_loss(x, x[:, 1:])


def test_gram_by_hand():
    a = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # two orthogonal patches
    b = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])  # two parallel ones
    assert gram_loss(a, b).item() == pytest.approx(2 / 4)  # two of four similarities differ by 1


def test_entropy_runs_from_0_to_log_k():
    assert entropy(torch.eye(3)).item() == 0
    assert entropy(torch.full((2, 5, 8), 1 / 8)).item() == pytest.approx(math.log(8))
