"""The checkpoint of the last step that was trained."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sslmodules.checkpoint_io import check_space
from sslmodules.storage import remove_unfinished
from sslmodules.trainer_state import epoch_ends, gradients_pending, step_ends_stage


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` at the end of every training epoch and of the fit, and at an interval within long epochs.

    It does not matter whether and when the Trainer validates. The file is written after validation and after the
    updates of all other callbacks (teacher, queue, probe), never while gradients are accumulated: a stop that a
    callback asks for in the middle of an accumulation waits for the optimizer step.

    Args:
        dirpath: folder of the file; None takes ``checkpoints`` in the folder of the logger, as `ModelCheckpoint` does.
        train_time_interval: time between two files within an epoch, by the clock of the first process; None writes at
            the end of epochs only.

    >>> trainer = Trainer(callbacks=[LastCheckpoint(train_time_interval=timedelta(minutes=10))], logger=False)
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        train_time_interval: timedelta | None = timedelta(minutes=30),
    ) -> None:
        super().__init__(dirpath, save_top_k=0, train_time_interval=train_time_interval)
        self._stop_waits = False
        self._saved_at = (0.0, 0)  # time in seconds, optimizer step
        self._next_question = 0  # optimizer step

    @property
    def state_key(self) -> str:
        """The same whatever the interval is."""
        return type(self).__qualname__

    def save(self, trainer: Trainer) -> str:
        """Write the file now and return its path; on several devices, every process has to call it.

        While gradients are pending nothing is written, and the path is that of the latest file, "" where there is none.
        """
        if not gradients_pending(trainer):
            self._write(trainer)
        return self.last_model_path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tidy up after runs that were killed, and look whether the file can be written.

        Until it is, the last checkpoint is that which the run goes on from.
        """
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if trainer.is_global_zero:
                folder = Path(str(self.dirpath))
                for each in (folder, *folder.parent.parent.glob("*/checkpoints")):  # of the other runs
                    remove_unfinished(each)
            check_space(trainer, self._path)
        self.best_model_path = self.last_model_path = str(trainer.ckpt_path or "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time."""
        self._saved_at = time.monotonic(), trainer.global_step
        self._next_question = 0
        self._stop_waits = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the file if it is time."""
        self._hold_stop(trainer)
        # What follows an epoch's last batch is no part of a checkpoint; nor is a validation.
        if not gradients_pending(trainer) and not step_ends_stage(trainer) and self._is_due(trainer):
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file if it is time, after a validation in the middle of an epoch."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._hold_stop(trainer)
        if not gradients_pending(trainer) and not epoch_ends(trainer) and self._is_due(trainer):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, unless a learning rate is still to be set by what was measured."""
        if not _waits_for_metric(trainer):
            self._write(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file of the epoch before, if that is not done."""
        if _waits_for_metric(trainer) and trainer.global_step > self._saved_at[1]:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file once more: at the end of a fit, callbacks may have put averaged weights in place."""
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the next run has its own file."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""

    @property
    def _path(self) -> str:
        return os.path.join(str(self.dirpath), self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION)

    def _write(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._save_checkpoint(trainer, self._path)
        self.best_model_path = self.last_model_path = self._path
        self._saved_at = time.monotonic(), trainer.global_step

    def _hold_stop(self, trainer: Trainer) -> None:
        if gradients_pending(trainer):
            self._stop_waits |= trainer.should_stop
            trainer.should_stop = False
        elif self._stop_waits:
            trainer.should_stop, self._stop_waits = True, False

    def _is_due(self, trainer: Trainer) -> bool:
        if self._train_time_interval is None or trainer.global_step < self._next_question:
            return False
        saved_at, step = self._saved_at
        elapsed = time.monotonic() - saved_at
        left = self._train_time_interval.total_seconds() - elapsed
        if trainer.world_size == 1:
            return left <= 0
        # The first process decides for all. To ask it costs a collective, so it is asked again only when half of the
        # steps that fit into the rest of the interval are done.
        steps = 0 if left <= 0 else max(1, int(left / elapsed * (trainer.global_step - step) / 2))
        steps = trainer.strategy.broadcast(steps)
        self._next_question = trainer.global_step + steps
        return steps == 0


def _waits_for_metric(trainer: Trainer) -> bool:
    return any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)  # stepped after on_train_epoch_end
