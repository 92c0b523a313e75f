"""DINO: what the student and the teacher see, what changes by optimizer step, and how it collapses without centring."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from runs import images, loader, same_bits, snapshot, trainer
from torch import nn
from torch.utils.data import DataLoader

from sslmodules.callbacks import MomentumUpdate
from sslmodules.distillation import DINO
from sslmodules.distillation.dino import clip_each

HEAD = {"hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16}
TINY = {
    "encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "size": 16, "local_size": 8, "local_crops": 2, **HEAD
}  # fmt: skip
VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "drop_path_rate": 0.5},
    "size": 16, "local_size": 8, "local_crops": 2, **HEAD,
}  # fmt: skip


def built(recipe=TINY, **kwargs):
    torch.manual_seed(0)
    return DINO(**{**recipe, **kwargs})


def views_of(method, count=8, seed=0):
    method.generator = torch.Generator().manual_seed(seed)
    return method.make_views(images(count)[:][0])


# --- loss -----------------------------------------------------------------------------------------------------------


def test_loss_by_hand():
    method = built().eval()
    method.center.value.normal_()
    views = views_of(method)
    student = [method.head(method.encoder(v)) for v in views]
    teacher = [method.teacher_head(method.teacher_encoder(v)) for v in views[:2]]
    targets = [((t - method.center.value) / 0.07).softmax(1) for t in teacher]
    terms = [
        -(targets[g] * (student[v] / 0.1).log_softmax(1)).sum(1).mean() for g in range(2) for v in range(4) if g != v
    ]
    out = method.loss(views)
    torch.testing.assert_close(out["loss"], torch.stack(terms).mean())
    torch.testing.assert_close(out["features"], method.encoder(views[0]).detach())
    torch.testing.assert_close(out["projections"], method.project(out["features"]).detach())
    entropy = -torch.stack(targets).xlogy(torch.stack(targets)).sum(-1).mean()
    torch.testing.assert_close(out["teacher_entropy"], entropy)
    torch.testing.assert_close(out["kl"], out["loss"].detach() - entropy)


def test_teacher_sees_global_crops_and_student_all_in_one_pass_a_size():
    method = built()
    seen = {"student": [], "teacher": [], "head": []}
    for name, module in (("student", method.encoder), ("teacher", method.teacher_encoder), ("head", method.head.mlp)):
        module.register_forward_hook(lambda _, args, __, name=name: seen[name].append(tuple(args[0].shape)))
    method.loss(views_of(method))
    assert seen == {"student": [(16, 3, 16, 16), (16, 3, 8, 8)], "teacher": [(16, 3, 16, 16)], "head": [(32, 16)]}


def test_two_crops_alone_work_and_equal_answers_lose_their_entropy():
    method = built(local_crops=0, initial_teacher_temperature=0.1, teacher_temperature=0.1)
    views = views_of(method)
    assert len(views) == 2
    out = method.eval().loss([views[0], views[0]])  # same crops, same networks, same temperature
    assert out["kl"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("recipe", [TINY, VIT], ids=["conv4", "vit"])
def test_gradient_reaches_all_of_the_student_but_the_gain_and_nothing_of_the_teacher(recipe):
    method = built({**recipe, "encoder_args": {**recipe["encoder_args"]}}).train()
    method.encoder.eval()  # no drop path: every block has a gradient
    method.loss(views_of(method))["loss"].backward()
    gain = method.head.prototypes.gain
    without = {id(gain)} | {id(p) for _, teacher in method.momentum_pairs for p in teacher.parameters()}
    for name, p in method.named_parameters():
        assert (p.grad is None) == (id(p) in without), name
        assert p.requires_grad == (p.grad is not None)


def test_teacher_has_neither_drop_path_nor_dropout_but_its_batch_norms_learn_in_training():
    method = built(VIT, encoder_args={**VIT["encoder_args"], "proj_drop_rate": 0.5}).train()
    crops = torch.cat(views_of(method)[:2])
    assert torch.equal(method.teach(crops), method.teach(crops))
    assert not torch.equal(method.encode(crops), method.encode(crops))
    assert all(m.training for m in method.teacher_encoder.modules())
    norm = built().train()
    before = norm.teacher_encoder.stages[0][1].running_mean.clone()
    norm.loss(views_of(norm))
    assert not torch.equal(before, norm.teacher_encoder.stages[0][1].running_mean)


def test_resnet_with_batch_norm_in_the_head_trains(tmp_path):
    method = built(encoder="resnet10t", encoder_args=None, local_size=16, head_norm=True, optimizer_name="sgd")
    trainer(tmp_path, max_steps=1).fit(method, loader(4))
    assert all(p.isfinite().all() for p in method.state_dict().values())


# --- by optimizer step ----------------------------------------------------------------------------------------------


class Note(Callback):
    """What stands at each step."""

    def __init__(self, **read):
        self.read = read
        self.found = {name: [] for name in read}

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        for name, read in self.read.items():
            self.found[name].append(read(pl_module, optimizer))


class OptimizerSaw(torch.optim.AdamW):
    """Notes the weight decay of its groups when it steps."""

    seen: list[list[float]] = []

    def step(self, closure=None):
        loss = super().step(closure)  # the closure runs inside, and may still set what is used
        self.seen.append([g["weight_decay"] for g in self.param_groups])
        return loss


def test_weight_decay_rises_by_a_cosine_and_reaches_the_optimizer_on_the_decayed_group_only(tmp_path, monkeypatch):
    monkeypatch.setattr("sslmodules.distillation.dino.AdamW", OptimizerSaw)
    monkeypatch.setattr(OptimizerSaw, "seen", [])
    trainer(tmp_path, max_steps=4, accumulate_grad_batches=2).fit(built(), loader(64))
    decayed, spared = zip(*OptimizerSaw.seen, strict=True)
    assert decayed == pytest.approx([0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)])
    assert decayed[0] == pytest.approx(0.04)
    assert spared == (0.0,) * 4


def test_weight_decay_of_a_given_optimizer_is_left_alone(tmp_path):
    method = built(optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.02))
    run = trainer(tmp_path, max_steps=2)
    run.fit(method, loader(16))
    assert [g["weight_decay"] for g in run.optimizers[0].param_groups] == [0.02, 0.0]
    assert built(final_weight_decay=None).current_weight_decay() == 0.04


def test_teacher_temperature_rises_in_a_straight_line_of_optimizer_steps(tmp_path):
    seen = []

    class Watch(DINO):
        def loss(self, views):
            seen.append(self.current_teacher_temperature())
            return super().loss(views)

    method = Watch(**TINY, teacher_temperature_epochs=1.5)
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2).fit(method, loader(64))  # 4 steps an epoch
    steps = [i // 2 for i in range(16)]
    assert seen == pytest.approx([0.04 + 0.03 * min(1, step / 6) for step in steps])
    assert built().current_teacher_temperature() == 0.07  # outside a run


def test_learning_rate_ends_at_the_least_rate(tmp_path):
    method = built(warmup_epochs=0, learning_rate=3.2, min_learning_rate=0.05)
    run = trainer(tmp_path, max_steps=4)
    run.fit(method, loader(32))  # 8 images a step: a 32nd of 3.2
    (rate,) = {g["lr"] for g in run.optimizers[0].param_groups}
    assert rate == pytest.approx(0.05)
    note = Note(rate=lambda m, o: o.param_groups[0]["lr"])
    trainer(tmp_path, max_steps=4, callbacks=[note]).fit(built(warmup_epochs=0, learning_rate=3.2), loader(32))
    assert note.found["rate"][:2] == pytest.approx([0.1, 0.1 * 0.5 * (1 + math.cos(math.pi / 4))], rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_last_layer_is_frozen_for_the_first_epoch_and_moves_after_it(name, tmp_path):
    note = Note(
        prototypes=lambda m, _: m.head.prototypes.weight.detach().clone(),
        mlp=lambda m, _: m.head.mlp[0].weight.sum().item(),
    )
    method = built(optimizer_name=name, learning_rate=1.0, warmup_epochs=0)
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[note]).fit(method, loader(32))
    start, one, two = note.found["prototypes"][0], note.found["prototypes"][1], note.found["prototypes"][2]
    assert torch.equal(start, one)  # 2 steps an epoch
    assert torch.equal(start, two)
    assert not torch.equal(start, note.found["prototypes"][3])
    assert len(set(note.found["mlp"])) == 4


def test_each_parameter_is_clipped_by_itself(tmp_path):
    class Big(DINO):
        def loss(self, views):
            out = super().loss(views)
            return {**out, "loss": out["loss"] * 1e4}

        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            self.raw = {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}

    note = {}

    class Grads(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            note.update({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    method = Big(**TINY, freeze_last_layer_epochs=0)
    trainer(tmp_path, max_steps=1, callbacks=[Grads()]).fit(method, loader(8))
    assert note.keys() == method.raw.keys()
    norms = [g.norm().item() for g in note.values()]
    assert max(norms) <= 3.0 + 1e-5
    assert sum(n > 2.99 for n in norms) > 4  # together they are longer
    for name, g in note.items():
        torch.testing.assert_close(g, method.raw[name] * min(1, 3.0 / (method.raw[name].norm() + 1e-6)))


@pytest.mark.parametrize(("value", "total"), [(0.5, 0.5), (0.0, None)])
def test_a_clip_of_the_trainers_takes_the_place_of_the_recipes(value, total, tmp_path):
    norms = []

    class Grads(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(torch.stack(torch._foreach_norm(grads)).norm().item())

    method = built(clip_norm=1e-3)
    trainer(tmp_path, max_steps=1, gradient_clip_val=value, callbacks=[Grads()]).fit(method, loader(8))
    if total is None:
        assert norms[0] > 0.1
    else:
        assert 0.1 < norms[0] <= total + 1e-4


def test_clip_each_leaves_short_gradients_and_no_gradients_alone():
    p, q, r = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_each([p, q, r], 1.0)
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))
    assert torch.equal(q.grad, torch.tensor([0.3, 0.4]))
    clip_each([r], 1.0)
    assert r.grad is None


@pytest.mark.parametrize(("momentum", "follows"), [(1.0, False), (0.0, True)])
def test_teacher_stays_at_momentum_1_and_equals_the_student_at_0(momentum, follows, tmp_path):
    method = built(momentum=momentum)
    method.momentum_rises = False
    before = snapshot(method.teacher_head)
    trainer(tmp_path, max_steps=3).fit(method, loader(24))
    assert same_bits(before, snapshot(method.teacher_head)) != follows
    for student, teacher in method.momentum_pairs:
        equal = [torch.equal(s, t) for s, t in zip(student.parameters(), teacher.parameters(), strict=True)]
        assert all(equal) == follows


def test_a_run_starts_from_the_weights_of_another_at_another_size(tmp_path):
    first = built(VIT)
    run = trainer(tmp_path, max_steps=1)
    run.fit(first, loader(8))
    run.save_checkpoint(tmp_path / "first.ckpt")
    larger = {**VIT, "size": 24, "encoder_args": {**VIT["encoder_args"], "img_size": 16}}
    second = built(larger, start_from=str(tmp_path / "first.ckpt"), learning_rate=0.0)
    run = trainer(tmp_path, max_steps=1, limit_train_batches=0)
    run.fit(second, loader(8))
    assert same_bits(snapshot(first), snapshot(second))
    assert run.global_step == 0


# --- collapse -------------------------------------------------------------------------------------------------------


def final(method, steps=40):
    """Entropy of the teacher and divergence, over the last steps of a short training with a quick teacher."""
    method.train()
    batches = [views_of(method, 16, seed) for seed in range(4)]
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3)
    found = []
    for step in range(steps):
        out = method.loss(batches[step % 4])
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.center.commit()
        MomentumUpdate().update(method.momentum_pairs, 0.9)
        found.append((out["teacher_entropy"].item(), out["kl"].item()))
    return [sum(column) / 10 for column in zip(*found[-10:], strict=True)]


def test_monitors_show_the_collapse_without_centring():
    recipe = {"initial_teacher_temperature": 0.04, "teacher_temperature": 0.04}
    entropy, kl = final(built(**recipe))
    collapsed_entropy, collapsed_kl = final(built(**recipe, center_momentum=1.0))
    assert entropy > 0.5
    assert collapsed_entropy < 0.01 * entropy
    assert collapsed_kl < 0.1 * kl


# --- what is refused, and shown -------------------------------------------------------------------------------------


def test_local_crops_that_do_not_fit_are_refused_before_the_first_step(tmp_path):
    for recipe, sentence in (
        ({**VIT, "local_size": 10}, r"local crops are 10 px and the encoder cuts patches of 4x4; pass a local_size"),
        (
            {**VIT, "encoder_args": {**VIT["encoder_args"], "dynamic_img_size": False}},
            r"built for images of one size and the local crops are of another \(8 px\); pass encoder_args=",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            trainer(tmp_path, max_steps=1).fit(built(recipe), loader(8))


def test_pictures_show_global_and_local_crops():
    shown = built().eval().pictures(images(3)[:][0])
    assert {name: tuple(tiles.images.shape) for name, tiles in shown.items()} == {
        "views": (3, 2, 3, 16, 16),
        "local views": (3, 2, 3, 8, 8),
    }
    assert list(built(local_crops=0).pictures(images(3)[:][0])) == ["views"]


def test_images_of_any_size_train_where_the_size_is_theirs(tmp_path):
    method = built(size=None)
    trainer(tmp_path, max_steps=1).fit(method, DataLoader(images(8, side=24)[:][0], 8))
    assert method.make_views(images(2, side=24)[:][0])[0].shape == (2, 3, 24, 24)
