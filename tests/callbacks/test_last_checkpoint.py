"""The last checkpoint: whatever validates when, its weights are those at the end."""

import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from runs import images, loader, same_bits, snapshot, trainer
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sslmodules import MoCo
from sslmodules.callbacks import LastCheckpoint
from sslmodules.datamodules import LabeledDataModule
from sslmodules.storage import StorageError
from sslmodules.trainer_state import gradients_pending

TINY = {"encoder": "conv4", "encoder_args": {"widths": (4,)}, "hidden_dim": 4, "output_dim": 4}


def fit(folder, *callbacks, interval=None, val=True, **kwargs):
    """Train on 4 batches an epoch; returns the weights at the end, the Trainer and the callback."""
    method, last = MoCo(**TINY, queue_size=8, warmup_epochs=0), LastCheckpoint(folder, interval)
    run = trainer(folder, callbacks=[last, *callbacks], enable_checkpointing=True, **kwargs)
    run.fit(method, loader(16, 4), loader(8, 4) if val else None)
    return snapshot(method), run, last


def saved(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


class EveryBatch(Callback):
    """Call a function with the Trainer after each training batch."""

    def __init__(self, call):
        self.call = call

    def on_train_batch_end(self, trainer, *_):
        self.call(trainer)


class Watch(LastCheckpoint):
    """Keep what is written: optimizer step, and whether it may be."""

    def __init__(self, folder, interval=None):
        super().__init__(folder, interval)
        self.written = []

    def _save_checkpoint(self, trainer, filepath):
        self.written.append((trainer.global_step, gradients_pending(trainer)))
        super()._save_checkpoint(trainer, filepath)


@pytest.mark.parametrize("epochs", [3, 15])
def test_a_run_leaves_its_last_epoch_where_every_tenth_validates(epochs, tmp_path):
    weights, run, last = fit(tmp_path, max_epochs=epochs, check_val_every_n_epoch=10)
    assert saved(tmp_path)["global_step"] == 4 * epochs == run.global_step
    assert same_bits(saved(tmp_path)["state_dict"], weights)
    assert last.last_model_path == last.best_model_path == str(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"val": False, "max_epochs": 2},
        {"limit_val_batches": 0, "max_epochs": 2},
        {"max_steps": 6, "max_epochs": -1},
        {"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": -1},
        {"max_epochs": 2, "accumulate_grad_batches": 3},
    ],
    ids=str,
)
def test_the_file_holds_the_weights_at_the_end(kwargs, tmp_path):
    weights, run, _ = fit(tmp_path, **kwargs)
    assert saved(tmp_path)["global_step"] == run.global_step > 0
    assert same_bits(saved(tmp_path)["state_dict"], weights)


class Averaged(Callback):
    """Put other weights in place at the end, as averaging ones do."""

    def on_train_end(self, trainer, module):
        for p in module.parameters():
            p.data.zero_()


def test_weights_that_a_callback_puts_in_place_at_the_end_are_in_the_file(tmp_path):
    weights, *_ = fit(tmp_path, Averaged(), max_epochs=1)
    assert same_bits(saved(tmp_path)["state_dict"], weights)
    assert not any(v.any() for k, v in weights.items() if k.startswith("encoder") and k.endswith("weight"))


def test_the_interval_writes_within_an_epoch_and_never_while_gradients_are_pending(tmp_path):
    last = Watch(tmp_path, timedelta(0))
    fit(tmp_path, last, max_epochs=1, accumulate_grad_batches=3)
    assert last.written == [(1, False), (2, False), (2, False)]  # a step, the end of the epoch, of the fit


def test_the_interval_writes_after_a_validation_and_not_before(tmp_path):
    steps, last = [], Watch(tmp_path, timedelta(0))
    fit(tmp_path, last, EveryBatch(lambda run: steps.append(len(last.written))), max_epochs=1, val_check_interval=2)
    assert last.written == [(1, False), (2, False), (3, False), (4, False), (4, False)]
    assert steps == [0, 1, 2, 3]  # the epoch's last batch is written once: at its end


class Cut(Exception):
    pass


def test_a_learning_rate_that_follows_a_measurement_is_set_in_the_file(tmp_path):
    """Lightning sets it after ``on_train_epoch_end``."""

    def run(folder, epochs, ckpt_path=None, *callbacks):
        torch.manual_seed(0)
        plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9)  # never good enough
        method = MoCo(**TINY, queue_size=8, lr_scheduler=plateau)
        run = trainer(
            folder, callbacks=[LastCheckpoint(folder), *callbacks], enable_checkpointing=True, max_epochs=epochs
        )
        data = LabeledDataModule(images(16), images(8), batch_size=4, num_workers=0)
        run.fit(method, datamodule=data, ckpt_path=ckpt_path)
        return snapshot(method), run.optimizers[0].param_groups[0]["lr"]

    def cut(run):
        if run.current_epoch == 2:
            raise Cut

    whole, rate = run(tmp_path / "whole", 4)
    with pytest.raises(Cut):
        run(tmp_path / "cut", 4, None, EveryBatch(cut))
    resumed, same_rate = run(tmp_path / "resumed", 4, tmp_path / "cut" / "last.ckpt")
    assert rate == same_rate
    assert same_bits(whole, resumed)


def test_no_interval_writes_at_the_end_of_epochs_alone(tmp_path):
    last = Watch(tmp_path)
    fit(tmp_path, last, max_epochs=2)
    assert [step for step, _ in last.written] == [4, 8, 8]


def test_the_first_process_decides_for_all_and_is_not_asked_after_every_step(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    asked = []

    class Strategy:
        def broadcast(self, steps):
            asked.append(steps)
            return steps

    class Run:
        global_step, world_size, strategy = 0, 2, Strategy()

    last = LastCheckpoint(tmp_path, timedelta(seconds=1000))
    last.on_train_start(Run, None)
    due = []
    for step in range(1, 301):
        Run.global_step, now[0] = step, 100.0 + 10 * step
        if last._is_due(Run):
            due.append(step)
            last._saved_at = now[0], step
    assert due == [100, 200, 300]
    assert len(asked) < 30


@pytest.mark.parametrize("asks", ["batch", "validation"])
def test_a_stop_in_the_middle_of_an_accumulation_waits_for_the_step(asks, tmp_path):
    def stop(trainer):
        trainer.should_stop = True

    callback = EveryBatch(stop)
    if asks == "validation":
        callback = EarlyStopping("val/loss", stopping_threshold=1e9, check_on_train_epoch_end=False)
    weights, run, _ = fit(
        tmp_path, callback, max_epochs=5, accumulate_grad_batches=2, val_check_interval=1, limit_val_batches=1
    )
    assert run.global_step == 1
    assert run.fit_loop.epoch_loop.batch_progress.total.completed == 2
    assert same_bits(saved(tmp_path)["state_dict"], weights)


def test_save_writes_now_and_returns_the_path_unless_gradients_are_pending(tmp_path):
    returned = []

    def save(trainer):
        path = trainer.checkpoint_callback.save(trainer)
        returned.append((path, saved(tmp_path)["global_step"] if path else None))

    fit(tmp_path, EveryBatch(save), max_epochs=1, accumulate_grad_batches=2)
    path = str(tmp_path / "last.ckpt")
    assert returned == [("", None), (path, 1), (path, 1), (path, 2)]


def test_a_run_that_goes_on_names_the_file_that_it_began_with_until_it_writes(tmp_path):
    fit(tmp_path / "a", max_epochs=1)
    last = LastCheckpoint(tmp_path / "b")
    run = trainer(tmp_path, callbacks=[last], enable_checkpointing=True, max_epochs=1)
    run.fit(MoCo(**TINY, queue_size=8), loader(16, 4), ckpt_path=tmp_path / "a" / "last.ckpt")  # nothing is left to do
    assert last.best_model_path == str(tmp_path / "a" / "last.ckpt")


def test_a_development_run_writes_nothing(tmp_path):
    fit(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_what_killed_runs_have_left_is_gone_at_the_next_start(tmp_path):
    old, other = (tmp_path / run / "checkpoints" / ".last.ckpt.0123abcd.unfinished" for run in ("old", "new"))
    for path in (old, other):
        path.parent.mkdir(parents=True)
        path.touch()
    fit(other.parent, max_epochs=1)
    assert not old.exists()
    assert [p.name for p in other.parent.iterdir()] == ["last.ckpt"]


class NoSpace(LastCheckpoint):
    """Let the first process find its disk full when training begins; note what each says."""

    def on_fit_start(self, trainer, pl_module):
        if trainer.is_global_zero:
            shutil.disk_usage = lambda path: SimpleNamespace(free=7)
        try:
            super().on_fit_start(trainer, pl_module)
        except StorageError as error:
            Path(self.dirpath, f"said-{trainer.global_rank}").write_text(str(error))
        trainer.strategy.barrier()  # the first to end takes the other one with it
        raise RuntimeError


TWO = {"strategy": "ddp_fork", "devices": 2}


def test_two_processes_write_one_file(tmp_path):
    fit(tmp_path, interval=timedelta(0), max_epochs=1, **TWO)
    assert saved(tmp_path)["global_step"] == 2


def test_two_processes_say_alike_that_there_is_no_space(tmp_path):
    with pytest.raises(ProcessRaisedException):
        fit(tmp_path, NoSpace(tmp_path), max_epochs=1, **TWO)
    first, second = ((tmp_path / f"said-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert "bytes are needed and 7 bytes are free there" in first
