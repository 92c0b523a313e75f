import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from runs import loader, trainer
from torch import nn

from sslmodules import MoCo
from sslmodules.callbacks import MomentumUpdate
from sslmodules.optim import cosine_momentum


def pair():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = copy.deepcopy(student)
    for p in student.parameters():
        nn.init.normal_(p)
    student[1].running_mean.fill_(5.0)
    student[1].num_batches_tracked.fill_(7)
    return student, teacher


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_parameters_move_by_the_formula(momentum):
    student, teacher = pair()
    expected = [
        momentum * t + (1 - momentum) * s for s, t in zip(student.parameters(), teacher.parameters(), strict=True)
    ]
    MomentumUpdate().update([(student, teacher)], momentum)
    torch.testing.assert_close(list(teacher.parameters()), expected)


@pytest.mark.parametrize(("policy", "mean", "count"), [("keep", 0.0, 0), ("copy", 5.0, 7), ("average", 0.5, 7)])
def test_buffers_follow_the_named_policy(policy, mean, count):
    student, teacher = pair()
    MomentumUpdate(buffers=policy).update([(student, teacher)], 0.9)
    assert teacher[1].running_mean[0].item() == pytest.approx(mean)
    assert teacher[1].num_batches_tracked.item() == count


def test_one_update_per_optimizer_step_under_accumulation(tmp_path):
    calls = []

    class Count(MomentumUpdate):
        def _move(self, tensors, momentum):
            calls.append(momentum)
            super()._move(tensors, momentum)

    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=64)
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=4, callbacks=[Count()])
    run.fit(method, loader(8 * 8))
    assert run.global_step == 4  # 2 epochs x 8 batches / 4
    assert calls == [0.999] * 4


def test_cosine_counts_optimizer_steps_and_not_batches(tmp_path):
    values = []

    class Note(MomentumUpdate):
        def _move(self, tensors, momentum):
            values.append(momentum)

    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=64)
    callback = Note(momentum=0.9, rises=True)
    trainer(tmp_path, max_steps=3, accumulate_grad_batches=2, callbacks=[callback]).fit(method, loader(8 * 8))
    assert values == [cosine_momentum(t, 3, 0.9) for t in range(3)]


def test_the_teacher_moves_after_the_optimizer_step(tmp_path):
    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=64, momentum=0.0)
    trainer(tmp_path, max_steps=2).fit(method, loader(32))
    for student, teacher in method.momentum_pairs:  # m = 0: the teacher is the student of after the step
        for s, t in zip(student.parameters(), teacher.parameters(), strict=True):
            assert torch.equal(s, t)


def test_any_module_with_pairs_is_served_and_others_are_left_alone(tmp_path):
    class Foreign(LightningModule):
        momentum = 0.5

        def __init__(self, pairs):
            super().__init__()
            self.net, self.teacher = nn.Linear(768, 1), nn.Linear(768, 1)
            if pairs:
                self.momentum_pairs = [(self.net, self.teacher)]

        def training_step(self, batch, batch_idx):
            return self.net(batch[0].flatten(1) / 255.0).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), 0.1)

    for pairs in (False, True):
        module = Foreign(pairs)
        before = module.teacher.weight.detach().clone()
        trainer(tmp_path, max_steps=1, callbacks=[MomentumUpdate()]).fit(module, loader(8))
        assert torch.equal(before, module.teacher.weight) != pairs
        assert module.teacher.weight.requires_grad != pairs


def test_errors_name_what_was_got(tmp_path):
    with pytest.raises(ValueError, match="momentum is 1.5, expected a number from 0"):
        MomentumUpdate(1.5)
    with pytest.raises(ValueError, match="buffers is 'mix', expected 'keep', 'copy' or 'average'"):
        MomentumUpdate(buffers="mix")
    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=64)
    method.teacher_projector = nn.Linear(16, 7)
    with pytest.raises(ValueError, match="a momentum pair of MoCo does not match"):
        trainer(tmp_path, max_steps=1).fit(method, loader(8))


def test_a_callback_that_stays_on_the_trainer_does_not_disturb_the_next_module(tmp_path):
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(768, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0].flatten(1) / 255.0).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    run = trainer(tmp_path, max_epochs=1)
    run.fit(MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=64), loader(8))
    assert any(isinstance(c, MomentumUpdate) for c in run.callbacks)
    run.fit_loop.epoch_progress.reset()
    run.fit(Plain(), loader(8))
    assert isinstance(run.callbacks[0], Callback)
