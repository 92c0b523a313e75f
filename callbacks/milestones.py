"""Lines about a run in the place of a progress bar, for output that goes into a file."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from sslmodules.batch import inputs_of


class Milestones(Callback):
    """Print one line at the end of every epoch, and in a long epoch one every few minutes.

    It holds the mean loss since the last line, what a progress bar would show of the validation, and the speed of
    training, validation not counted. Nothing is printed by other ranks than the first.

    Args:
        every_seconds: how long an epoch may last without a line.

    >>> trainer = Trainer(callbacks=[Milestones()], enable_progress_bar=False, logger=False)
    """

    def __init__(self, every_seconds: float = 300.0) -> None:
        self.every_seconds = every_seconds
        self._begin()

    def _begin(self) -> None:
        self._loss: Tensor | None = None  # sum over the batches since the last line, on the device
        self._batches = 0
        self._images = 0
        self._validated = False
        self._since = time.monotonic()
        self._paused = self._since

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._since += time.monotonic() - self._paused
        self._validated = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; print where the last line is long ago."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach() * trainer.accumulate_grad_batches  # Lightning has divided it
            self._loss = loss if self._loss is None else self._loss + loss
        self._batches += 1
        self._images += _count(batch) * trainer.world_size
        if time.monotonic() - self._since > self.every_seconds and not trainer.is_last_batch:
            self._print(trainer, f", batch {batch_idx + 1:,} of {trainer.num_training_batches:,}", {})
            self._begin()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch."""
        shown = trainer.progress_bar_metrics  # on every rank: reading them may reduce over all
        validated = {name: value for name, value in shown.items() if not name.startswith("train/")}
        self._print(trainer, "", validated if self._validated else {})

    def _print(self, trainer: Trainer, place: str, validated: Mapping[str, Any]) -> None:
        if not trainer.is_global_zero or not self._batches:
            return
        speed = self._images / max(time.monotonic() - self._since, 1e-9)
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        words = [f"epoch {trainer.current_epoch + 1}{last}{place}"]
        if self._loss is not None:
            words.append(f"loss {self._loss.item() / self._batches:.4g}")
        words += [f"{name} {value:.4g}" for name, value in validated.items() if isinstance(value, float)]
        print("  ".join([*words, f"{speed:,.0f} images/s"]), flush=True)


def _count(batch: Any) -> int:
    """Return how many images a batch holds."""
    first = batch
    if isinstance(batch, Mapping):
        first = batch["views"] if batch.get("views") is not None else inputs_of(batch)
    elif isinstance(batch, (list, tuple)):
        first = batch[0]
    while isinstance(first, (list, tuple)) and isinstance(first[0], Tensor) and first[0].ndim > 3:
        first = first[0]  # of ready-made views; a list of images of several sizes is counted itself
    return 0 if first is None else len(first)
