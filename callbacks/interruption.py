"""A run that is stopped from outside leaves a checkpoint from which it goes on exactly."""

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from torch import Tensor

from sslmodules.callbacks.last_checkpoint import LastCheckpoint
from sslmodules.signals import TIME_IS_UP, Interrupted, StopSignals
from sslmodules.trainer_state import gradients_pending, repeat_validation, step_ends_stage

STOPPING = "\nstopping after this step, with a checkpoint; the same signal again stops at once\n"


class Interruption(Callback):
    """Stop training at Ctrl-C, SIGTERM and ``Trainer(max_time=...)`` with a checkpoint, and end the process.

    A signal is only noted. After the current optimizer step, or the current batch of validation, all processes agree
    to stop, whichever of them has got it; the Trainer's `LastCheckpoint` is written (one is added where there is none),
    and ``trainer.fit`` raises `sslmodules.signals.Interrupted`: a SystemExit with the status 130 after Ctrl-C, 143
    after SIGTERM, 124 when the time is up. Resumed from this checkpoint, the run ends with the weights of one that was
    never stopped; a validation that was cut short is done again. A second signal stops at once, without a checkpoint.

    The time counts from the start of training in this process: a run that is resumed has all of ``max_time`` again.
    Within ``fit``, Lightning's own handling of SIGTERM is put out of use: on several devices it waits for a collective
    inside of the signal handler. Its handler that puts a SLURM job back into the queue is left in place.

    >>> trainer = Trainer(callbacks=[Interruption()], logger=False)
    """

    def __init__(self) -> None:
        self._signals = StopSignals(defer=True)
        self._max_time: float | None = None  # seconds
        self._end_time = float("inf")
        self._status = 0  # on which all processes have agreed
        self._group: Any = None  # of gloo, since a collective on the device would wait for its step
        self._sent: tuple[Any, Tensor] | None = None  # collective under way, and its result
        self._shared_batches = 0  # of validation, that all processes have
        self._last: LastCheckpoint | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over from Lightning, as the last of the callbacks: what they do after a step is in the checkpoint."""
        if stage != "fit":
            return
        timers = [c for c in trainer.callbacks if isinstance(c, Timer) and c._interval == "step"]  # type: ignore[attr-defined]
        for timer in timers:
            self._max_time = timer.time_remaining()
        last = [c for c in trainer.callbacks if isinstance(c, LastCheckpoint)]  # type: ignore[attr-defined]
        added = [] if last else [LastCheckpoint(train_time_interval=None)]
        for callback in added:
            callback.setup(trainer, pl_module, stage)
        self._last = (last + added)[0]
        others = [c for c in trainer.callbacks if c is not self and c not in timers]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, *added, self]  # type: ignore[attr-defined]
        trainer._signal_connector._sigterm_notifier_fn = lambda number, frame: None  # type: ignore[method-assign,assignment]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note signals from here on; before, they end the process as they always do."""
        self._status, self._sent = 0, None
        self._end_time = float("inf") if self._max_time is None else time.monotonic() + self._max_time
        self._signals = StopSignals(defer=True, message=STOPPING if trainer.is_global_zero else "")
        self._signals.__enter__()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs: the checkpoint of the one before has been written."""
        if self._agreed_now():
            raise Interrupted(self._status)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where the optimizer has stepped. What follows an epoch's last step has its own place to stop at."""
        if self._agreed() and not gradients_pending(trainer) and not step_ends_stage(trainer):
            self._save_and_stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn for how many batches all processes take part in the collective."""
        if trainer.sanity_checking or self._group is None:
            return
        batches = sum(trainer.num_val_batches)
        shared = torch.tensor(batches if batches != float("inf") else 0, dtype=torch.int64)
        dist.all_reduce(shared, dist.ReduceOp.MIN, self._group)
        self._shared_batches = int(shared)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in validation, with a checkpoint that begins it again."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self._group is not None:
            self._shared_batches -= 1
            if self._shared_batches < 0:
                return
        if self._agreed() and not gradients_pending(trainer):
            repeat_validation(trainer)
            self._save_and_stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after training: its last checkpoint has been written."""
        agreed = self._agreed_now()
        self._signals.restore()
        if agreed:
            raise Interrupted(self._status)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where the checkpoint is."""
        self._signals.restore()
        if isinstance(exception, Interrupted) and trainer.state.fn == "fit":
            self.report(trainer, exception)

    def report(self, trainer: Trainer, end: Interrupted) -> None:
        """Print, once and in the first process, what has ended the run and where its last checkpoint is."""
        if end.checkpoint is not None:
            return
        end.checkpoint = "" if self._last is None else self._last.last_model_path
        if trainer.is_global_zero:
            print(f"\n{end.reason}, after {trainer.global_step} optimizer steps", flush=True)
            print(f"last checkpoint   {end.checkpoint or 'none has been written'}", flush=True)

    def _save_and_stop(self, trainer: Trainer) -> None:
        assert self._last is not None
        self._last.save(trainer)
        raise Interrupted(self._status)

    def _wanted(self) -> int:
        return self._signals.status or (TIME_IS_UP if time.monotonic() > self._end_time else 0)

    def _agreed(self) -> int:
        """Return the status with which all processes stop now, 0 to go on.

        On several devices it is what they wanted at the last call: the collective runs while the next batch does, so
        that no step waits for it.
        """
        if self._group is None:
            self._status = self._status or self._wanted()
            return self._status
        self._receive()
        wanted = torch.tensor(self._wanted())
        self._sent = dist.all_reduce(wanted, dist.ReduceOp.MAX, self._group, async_op=True), wanted
        return self._status

    def _agreed_now(self) -> int:
        self._agreed()
        self._receive()
        return self._status

    def _receive(self) -> None:
        if self._sent is not None:
            work, wanted = self._sent
            work.wait()
            self._status, self._sent = self._status or int(wanted), None
