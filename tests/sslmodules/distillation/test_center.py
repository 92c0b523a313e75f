"""The centre moves once an optimizer step, to the mean of all that was seen for it."""

import pytest
import torch
from lightning.pytorch import Callback
from runs import loader, trainer
from torch import nn

from sslmodules.distillation import DINO
from sslmodules.distillation.center import Center

TINY = {
    "encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "size": 16, "local_size": 8, "local_crops": 1,
    "hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16,
}  # fmt: skip


class Answers(Callback):
    """Scores that the teacher gave in training, and the centre after each batch."""

    def __init__(self):
        self.scores, self.centers = [], []

    def on_train_start(self, trainer, pl_module):
        teach = pl_module.teach
        pl_module.teach = lambda crops: self.scores.append(s := teach(crops)) or s

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.centers.append(pl_module.center.value.clone())


def test_after_one_step_the_centre_is_a_tenth_of_the_mean(tmp_path):
    method, seen = DINO(**TINY), Answers()
    trainer(tmp_path, max_steps=1, callbacks=[seen]).fit(method, loader(8))
    assert seen.scores[0].shape == (16, 16)  # two global crops of 8 images
    torch.testing.assert_close(method.center.value, 0.1 * seen.scores[0].mean(0))


def test_the_loss_sees_the_centre_of_before():
    torch.manual_seed(0)
    method = DINO(**TINY).train()
    views = method.make_views(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    first, again = method.loss(views)["loss"], method.loss(views)["loss"]
    torch.testing.assert_close(first, again)
    assert method.center.value.eq(0).all()
    method.center.commit()
    assert method.center.value.ne(0).any()
    assert (method.loss(views)["loss"] - first).abs() > 1e-6


def test_accumulated_batches_are_committed_together_and_what_is_left_at_the_epochs_end_too(tmp_path):
    method, seen = DINO(**TINY), Answers()
    run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3, callbacks=[seen])
    run.fit(method, loader(8 * 4))
    assert run.global_step == 2
    a, b, c, d = seen.centers
    assert a.eq(0).all()
    assert b.eq(0).all()
    torch.testing.assert_close(c, 0.1 * torch.cat(seen.scores[:3]).mean(0))
    torch.testing.assert_close(d, 0.9 * c + 0.1 * seen.scores[3].mean(0))


def test_batches_of_different_size_count_by_their_rows():
    center = Center(1)
    center.collect(torch.zeros(2, 3, 1))
    center.collect(torch.full((2, 1), 4.0))
    center.commit()
    assert center.value.item() == pytest.approx(0.1)
    center.commit()  # nothing new
    center.collect(torch.zeros(0, 1))
    center.commit()
    assert center.value.item() == pytest.approx(0.1)


def test_validation_does_not_move_it(tmp_path):
    method = DINO(**TINY)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, loader(8))
    before = method.center.value.clone()
    run.validate(method, loader(32), verbose=False)
    method.center.commit()
    assert torch.equal(before, method.center.value)


def test_it_is_in_the_checkpoint_and_what_was_collected_is_not(tmp_path):
    method = DINO(**TINY)
    run = trainer(tmp_path, max_steps=2)
    run.fit(method, loader(16))
    run.save_checkpoint(tmp_path / "m.ckpt")
    again = DINO.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert torch.equal(method.center.value, again.center.value)
    assert method.center.value.ne(0).all()
    assert list(Center(3).state_dict()) == ["value"]


def test_what_a_broken_run_left_is_dropped_when_the_next_begins(tmp_path):
    method, seen = DINO(**TINY), Answers()
    method.center.collect(torch.full((100, 16), 9.0))
    trainer(tmp_path, max_steps=1, callbacks=[seen]).fit(method, loader(8))
    torch.testing.assert_close(method.center.value, 0.1 * seen.scores[0].mean(0))


def test_it_stays_fp32_and_exact_when_the_module_goes_to_bf16():
    center = Center(3)
    center.value.fill_(0.1234567)
    module = nn.ModuleDict({"center": center, "net": nn.Linear(3, 3)}).to(torch.bfloat16)
    assert module["net"].weight.dtype == torch.bfloat16
    assert torch.equal(module["center"].value, torch.full((3,), 0.1234567))
    assert module["center"](torch.zeros(2, 3, dtype=torch.bfloat16), 0.04).dtype == torch.float32


def test_probabilities_by_hand_and_a_momentum_out_of_range():
    center = Center(2, momentum=1.0)
    center.value.copy_(torch.tensor([1.0, 0.0]))
    center.collect(torch.ones(3, 2))
    center.commit()
    assert torch.equal(center.value, torch.tensor([1.0, 0.0]))  # switched off
    torch.testing.assert_close(center(torch.tensor([[1.0, 0.1]]), 0.1), torch.tensor([[0.0, 1.0]]).softmax(-1))
    with pytest.raises(ValueError, match="momentum is 1.5, expected a number from 0 to 1"):
        Center(2, momentum=1.5)
