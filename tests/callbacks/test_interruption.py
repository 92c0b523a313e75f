"""A run that is stopped in its middle and goes on ends as one that was never stopped."""

import multiprocessing
import os
import signal
import subprocess
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import images, same_bits, snapshot, trainer
from torch.utils.data import DataLoader

from sslmodules import MoCo
from sslmodules.callbacks import Interruption, LastCheckpoint, OnlineLinearProbe
from sslmodules.datamodules import LabeledDataModule
from sslmodules.signals import Interrupted, StopSignals

TINY = {"encoder": "conv4", "encoder_args": {"widths": (4,)}, "hidden_dim": 4, "output_dim": 4}


class At(Callback):
    """Call something in a hook of a training batch (by its number over all epochs) or of a validation batch."""

    def __init__(self, hook, number, call):
        self.number = number
        self.call = call
        self.count = 0
        setattr(self, hook, self.hook)

    def hook(self, run, *_):
        if not run.sanity_checking:
            self.count += 1
            if self.count == self.number:
                self.call()


def send(*numbers):
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


def fit(folder, *callbacks, ckpt_path=None, **kwargs):
    """Train MoCo on 5 batches an epoch, 3 of validation; returns weights, the Trainer and the last file."""
    torch.manual_seed(0)
    method = MoCo(**TINY, queue_size=8, warmup_epochs=0)
    data = LabeledDataModule(images(20), images(12, seed=1), batch_size=4)
    best = ModelCheckpoint(folder, "best", monitor="val/loss", enable_version_counter=False)
    own = [best, LastCheckpoint(folder, None), OnlineLinearProbe(4)]
    run = trainer(folder, callbacks=[*callbacks, Interruption(), *own], enable_checkpointing=True, **kwargs)
    run.fit(method, data, ckpt_path=ckpt_path)
    return snapshot(method), run, torch.load(folder / "last.ckpt", weights_only=True)


def stopped(folder, at, **kwargs):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    with pytest.raises(Interrupted) as error:
        fit(folder, at, **kwargs)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers[:2]
    signal.signal(signal.SIGCHLD, handlers[2])
    return error.value


WHERE = {
    "within an epoch": (("on_train_batch_start", 7), {}, 7),
    "in the first step": (("on_train_batch_start", 1), {}, 1),
    "in an accumulation": (("on_train_batch_start", 6), {"accumulate_grad_batches": 2}, 4),
    "in an epoch's last step": (("on_train_batch_start", 5), {}, 5),
    "in an epoch's last step, without validation": (("on_train_batch_start", 5), {"limit_val_batches": 0}, 5),
    "in validation": (("on_validation_batch_start", 2), {}, 5),
    "in a validation within the epoch": (("on_validation_batch_start", 2), {"val_check_interval": 2}, 2),
    "before a validation within the epoch": (("on_train_batch_start", 7), {"val_check_interval": 2}, 7),
    "at the end of an epoch": (("on_train_epoch_end", 1), {}, 5),
    "in the last step": (("on_train_batch_start", 10), {"max_steps": 10}, 10),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never stopped, and their folders, by what they were told."""
    runs = {}

    def get(**kwargs):
        if str(kwargs) not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[str(kwargs)] = *fit(folder, **kwargs), folder
        return runs[str(kwargs)]

    return get


@pytest.mark.parametrize("where", WHERE)
def test_it_goes_on_as_if_never_stopped(where, whole, tmp_path, capsys):
    number = signal.SIGTERM if "validation" in where else signal.SIGINT
    (hook, count), kwargs, steps = WHERE[where]
    kwargs = {"max_epochs": 2, **kwargs}
    weights, run, last, folder = whole(**kwargs)
    end = stopped(tmp_path / "parts", At(hook, count, send(number)), **kwargs)
    path = str(tmp_path / "parts" / "last.ckpt")
    assert (end.code, end.checkpoint) == (128 + number, path)
    assert path in capsys.readouterr().out
    assert torch.load(path, weights_only=True)["global_step"] == steps
    resumed, again, last_again = fit(tmp_path / "parts", ckpt_path=path, **kwargs)
    assert same_bits(resumed, weights)
    assert str(last_again["optimizer_states"]) == str(last["optimizer_states"])
    assert last_again["global_step"] == last["global_step"]
    probe = next(k for k in last["callbacks"] if "Probe" in k)
    assert str(last_again["callbacks"][probe]) == str(last["callbacks"][probe])
    if kwargs.get("limit_val_batches") != 0 and "max_steps" not in kwargs:
        best, best_again = (torch.load(f / "best.ckpt", weights_only=True) for f in (folder, tmp_path / "parts"))
        assert best["global_step"] == best_again["global_step"]
        assert same_bits(best["state_dict"], best_again["state_dict"])
        assert run.callback_metrics.keys() == again.callback_metrics.keys()
        assert all(torch.equal(run.callback_metrics[k], again.callback_metrics[k]) for k in run.callback_metrics)


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("sslmodules.signals.AGAIN", 0)
    end = stopped(tmp_path, At("on_train_batch_start", 7, send(signal.SIGINT, signal.SIGINT)), max_epochs=2)
    assert end.code == 130
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5  # of the epoch before


def test_a_signal_that_a_launcher_has_doubled_is_one(tmp_path):
    stopped(tmp_path, At("on_train_batch_start", 7, send(signal.SIGINT, signal.SIGINT)), max_epochs=2)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_sanity_check_start"])
def test_before_the_first_step_it_says_that_there_is_no_checkpoint(hook, tmp_path, capsys):
    at = At("on_sanity_check_start", 1, send(signal.SIGTERM))
    at.hook = send(signal.SIGTERM)
    setattr(at, hook, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with StopSignals():  # as on the command line
        end = stopped(tmp_path, at, max_epochs=2, num_sanity_val_steps=1)
    assert (end.code, end.checkpoint) == (143, "")
    assert "none has been written" in capsys.readouterr().out


def test_max_time_stops_within_an_epoch_and_counts_anew_after_resuming(whole, tmp_path, monkeypatch):
    weights, *_ = whole(max_epochs=2)
    now = [0.0]
    monkeypatch.setattr("sslmodules.callbacks.interruption.time.monotonic", lambda: now[0])
    hour = {"max_time": timedelta(hours=1), "max_epochs": 2}

    def pass_time():
        now[0] += 3601

    end = stopped(tmp_path / "parts", At("on_train_batch_start", 3, pass_time), **hour)
    assert end.code == 124
    assert torch.load(end.checkpoint, weights_only=True)["global_step"] == 3
    assert same_bits(fit(tmp_path / "parts", ckpt_path=end.checkpoint, **hour)[0], weights)


def test_a_run_without_a_last_checkpoint_gets_one(tmp_path):
    at = At("on_train_batch_start", 2, send(signal.SIGINT))
    run = trainer(tmp_path, max_epochs=1, callbacks=[Interruption(), at])
    with pytest.raises(Interrupted) as error:
        run.fit(MoCo(**TINY, queue_size=8), LabeledDataModule(images(20), batch_size=4))
    assert torch.load(error.value.checkpoint, weights_only=True)["global_step"] == 2


def test_under_slurm_the_handler_that_requeues_stays(tmp_path, monkeypatch):
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}
    slurm |= {"SLURM_JOB_NODELIST": "localhost"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    seen = []
    look = At("on_train_batch_start", 1, lambda: seen.append(signal.getsignal(signal.SIGUSR1)))
    fit(tmp_path, look, max_epochs=1)
    assert "slurm" in str(seen[0].signal_handlers)


def everybody():
    """Send SIGTERM to this process and to the workers of its loaders, as a scheduler does."""
    processes = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
    subprocess.run(["kill", "-TERM", *map(str, processes)], check=True)  # from outside of them


def stopped_by_everybody(folder, at, data, **kwargs):
    callbacks = [Interruption(), At("on_train_batch_start", at, everybody)]
    with pytest.raises(Interrupted) as error:
        trainer(folder, max_epochs=2, callbacks=callbacks, **kwargs).fit(MoCo(**TINY, queue_size=8), *data)
    return torch.load(error.value.checkpoint, weights_only=True)["global_step"]


def test_workers_of_a_loader_that_the_same_signal_ends_do_not_spoil_the_step(tmp_path):
    """PyTorch raises a RuntimeError at their end, in the middle of whatever the process does."""
    assert stopped_by_everybody(tmp_path, 2, [DataLoader(images(20), 4, num_workers=2)]) == 2


def test_workers_of_our_loaders_live_on_to_the_end_of_an_accumulation(tmp_path):
    data = LabeledDataModule(images(20), batch_size=1, num_workers=2)
    assert stopped_by_everybody(tmp_path, 6, [data], accumulate_grad_batches=10) == 1
