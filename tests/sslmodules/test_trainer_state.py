"""A run that is killed goes on with the batch after the last one, also if it is killed twice around an epoch's end."""

import logging

import pytest
import torch
from kills import differences, kills, run, sigkill
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from method_list import METHODS
from runs import images, same_bits, snapshot, trainer

from sslmodules.datamodules import LabeledDataModule
from sslmodules.trainer_state import gradients_pending


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)


@pytest.mark.parametrize("case", ["SimCLR, no validation, steps", "MoCo, accumulation, ModelCheckpoint", "DINO"])
def test_killed_once_or_twice_anywhere(case, tmp_path):
    count = 0
    for name, differing in kills(case, tmp_path, workers=0, pairs=5):
        assert not differing, name
        count += 1
    assert count > 10


def test_a_real_kill_leaves_what_the_file_says(tmp_path):
    assert not sigkill("MoCo, accumulation", tmp_path, 2, after=3)


def test_the_comparison_finds_a_difference(tmp_path):
    whole, _ = run("MAE", tmp_path / "a")
    assert not list(differences(whole, whole))
    other = {**whole, "state_dict": {k: v + 1 for k, v in whole["state_dict"].items()}, "global_step": 1}
    assert len(list(differences(whole, other))) == len(whole["state_dict"]) + 1


class Watch(ModelCheckpoint):
    """Note whether gradients are pending when it writes."""

    def _save_checkpoint(self, trainer, filepath):
        self.written = [*getattr(self, "written", []), gradients_pending(trainer)]
        super()._save_checkpoint(trainer, filepath)


def fit(folder, *callbacks, name="MAE", ckpt_path=None, **kwargs):
    data = LabeledDataModule(images(36), batch_size=8, seed=3, num_workers=0)
    torch.manual_seed(0)
    method = METHODS[name]()
    done = trainer(folder, callbacks=list(callbacks), enable_checkpointing=True, accumulate_grad_batches=3, **kwargs)
    done.fit(method, datamodule=data, ckpt_path=ckpt_path)
    return snapshot(method), done


def test_a_model_checkpoint_does_not_write_between_the_batches_of_a_step_when_it_goes_on(tmp_path):
    def watch():
        return Watch(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)

    fit(tmp_path, watch(), max_epochs=2)
    again = watch()
    fit(tmp_path, again, max_epochs=2, ckpt_path=tmp_path / "step=2.ckpt")
    assert again.written == [False, False]


class SaveAt(Callback):
    """Write a file after some batch, whatever is pending."""

    def __init__(self, path, batches):
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 6, "max_epochs": -1}], ids=["epochs", "steps"])
@pytest.mark.parametrize("batches", [5, 6])
def test_the_batches_of_a_step_that_was_not_done_are_trained_on_again(batches, limit, tmp_path, recwarn):
    """4 batches an epoch, 3 a step; MAE has no batch norm, whose running statistics see a batch twice."""
    whole, _ = fit(tmp_path, **limit)
    fit(tmp_path, SaveAt(tmp_path / "pending.ckpt", batches), **limit)
    resumed, done = fit(tmp_path, ckpt_path=tmp_path / "pending.ckpt", **limit)
    assert same_bits(whole, resumed)
    assert done.global_step == done.fit_loop.epoch_loop._batches_that_stepped == 6
    assert done.fit_loop.epoch_loop.batch_progress.total.ready == 12
    pending = (batches - 1) % 4 + 1
    assert any(f"gradients of {pending} batches are not in it" in str(w.message) for w in recwarn)
