"""What the method sees, as pictures in TensorBoard and on disk."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid, save_image

from sslmodules.batch import inputs_of
from sslmodules.callbacks.features import frozen


class Pictures(Callback):
    """Write the pictures that the module's ``pictures(images)`` gives: for every method at least its views.

    Each becomes a grid, one row an image, in ``<log_dir>/pictures/<name>-step=<n>.png`` and in TensorBoard. It does
    nothing for modules without ``pictures``, and takes no random number from the run. A module that says
    ``shows_truth = True`` is given the targets as well, ``pictures(images, targets)``.

    Args:
        every_n_epochs: how often, from the first epoch on.
        images: rows of the grid.
        min_side: tiles smaller than this many pixels are enlarged, without smoothing.

    >>> trainer = Trainer(callbacks=[Pictures(every_n_epochs=10)], logger=False)
    """

    def __init__(self, every_n_epochs: int = 10, images: int = 8, min_side: int = 64) -> None:
        self.every_n_epochs = every_n_epochs
        self.images = images
        self.min_side = min_side

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of the epoch."""
        if batch_idx > 0 or trainer.current_epoch % self.every_n_epochs:
            return
        folder = trainer.log_dir  # a broadcast, so every rank asks for it
        if not trainer.is_global_zero:
            return
        images = (
            inputs_of(batch) if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
        )
        with_truth = getattr(pl_module, "shows_truth", False)  # and then images may be a list, of many sizes
        if not hasattr(pl_module, "pictures") or not (with_truth or isinstance(images, Tensor)):
            return
        shown = batch if with_truth else [images]
        with frozen(pl_module):
            torch.manual_seed(0)  # the same crops and colours each time; `frozen` puts the run's state back
            drawn = pl_module.pictures(*(part[: self.images] for part in shown))  # type: ignore[operator]
        for name, tiles in drawn.items():
            self._write(trainer, folder, name, tiles.float().cpu())

    def _write(self, trainer: Trainer, log_dir: str | None, name: str, tiles: Tensor) -> None:
        picture = grid(tiles, self.min_side)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"pictures/{name}", picture, trainer.global_step)
        if log_dir is not None and trainer.loggers:
            folder = Path(log_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            save_image(picture, folder / f"{name}-step={trainer.global_step}.png")


def grid(tiles: Tensor, min_side: int = 64) -> Tensor:
    """One picture (3, H, W) of tiles (rows, columns, C, h, w) in [0, 1], enlarged to at least ``min_side`` px.

    Of more than three channels the first three are shown, of two the first.

    >>> grid(torch.zeros(2, 3, 1, 16, 16)).shape
    torch.Size([3, 140, 208])
    """
    flat = tiles.flatten(0, 1)  # (rows · columns, C, h, w)
    if flat.shape[1] not in (1, 3):
        flat = flat[:, :3] if flat.shape[1] > 3 else flat[:, :1]
    factor = -(-min_side // flat.shape[-1])
    flat = flat.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return make_grid(flat, nrow=tiles.shape[1], padding=4, pad_value=1.0)
