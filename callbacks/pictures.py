"""What the method sees, as pictures in TensorBoard and on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.utils import save_image

from sslmodules.batch import inputs_of
from sslmodules.callbacks.features import frozen
from sslmodules.tiles import Tiles, grid


class Pictures(Callback):
    """Write the pictures that the module's ``pictures(images)`` gives, :class:`~sslmodules.tiles.Tiles` by name.

    For every method these are at least its views. They are drawn before the first step of a fit, at its end, and every
    few epochs between: always of the same images, spread evenly over the validation set; without one, of the first
    training batch. Each becomes a grid in ``<log_dir>/pictures/<name>-step=<n>.png`` and in TensorBoard. The callback
    does nothing for modules without ``pictures``, and takes no random number from the run. A module that says
    ``shows_truth = True`` is given the targets as well, ``pictures(images, targets)``.

    Args:
        every_n_epochs: how often, besides the beginning and the end.
        images: how many are shown, one row each.
        min_side: tiles smaller than this many pixels are enlarged, without smoothing.

    >>> trainer = Trainer(callbacks=[Pictures(every_n_epochs=10)], logger=False)
    """

    def __init__(self, every_n_epochs: int = 10, images: int = 8, min_side: int = 64) -> None:
        self.every_n_epochs = every_n_epochs
        self.images = images
        self.min_side = min_side
        self._batch: Any = None  # that is shown
        self._drawn_at: int | None = None  # steps done then

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose validation images, and draw them before the first step."""
        self._drawn_at = None
        self._batch = self._validation_images(trainer)
        if self._batch is not None:
            self._draw(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the first training batch where there are no validation images."""
        if self._batch is None:
            self._batch = batch
            self._draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw at the interval."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the run has come to."""
        self._draw(trainer, pl_module)
        self._batch = None

    def _validation_images(self, trainer: Trainer) -> Any:
        """A batch of images spread evenly over the validation set; None without one, or one without places."""
        loader = trainer.val_dataloaders
        while isinstance(loader, (list, tuple, Mapping)):
            loader = next(iter(loader.values() if isinstance(loader, Mapping) else loader), None)
        dataset: Any = getattr(loader, "dataset", None)
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not len(dataset):
            return None
        count = min(self.images, len(dataset))
        places = [i * len(dataset) // count for i in range(count)]
        with isolate_rng():  # of whatever the dataset draws
            torch.manual_seed(0)
            chosen = DataLoader(dataset, batch_sampler=[places], collate_fn=loader.collate_fn)  # type: ignore[union-attr]
            return trainer.strategy.batch_to_device(next(iter(chosen)))

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a broadcast, so every rank asks for it
        if not trainer.is_global_zero or self._drawn_at == trainer.global_step or not hasattr(pl_module, "pictures"):
            return
        self._drawn_at = trainer.global_step
        with_truth = getattr(pl_module, "shows_truth", False)  # and then images may be a list, of many sizes
        parts = _parts(self._batch)
        shown = [part[: self.images] for part in parts[: 2 if with_truth else 1]]
        if not shown or not (with_truth or isinstance(shown[0], Tensor)):
            return
        with frozen(pl_module):
            torch.manual_seed(0)  # the same crops and colors each time; `frozen` puts the run's state back
            drawn = pl_module.pictures(*shown)  # type: ignore[operator]
        for name, tiles in drawn.items():
            self._write(trainer, folder, name, tiles)

    def _write(self, trainer: Trainer, log_dir: str | None, name: str, tiles: Tiles) -> None:
        picture = grid(tiles, self.min_side)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"pictures/{name}", picture, trainer.global_step)
        if log_dir is not None and trainer.loggers:
            folder = Path(log_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            save_image(picture, folder / f"{name}-step={trainer.global_step}.png")


def _parts(batch: Any) -> list[Any]:
    """Images of a batch, and its targets where it has some."""
    if isinstance(batch, Mapping):
        batch = [inputs_of(batch), batch.get("label")]
    parts = list(batch) if isinstance(batch, (list, tuple)) else [batch]
    return [part for part in parts if part is not None]
