"""What the method sees, as pictures in TensorBoard and on disk."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid, save_image

from sslmodules.callbacks.features import frozen


class Pictures(Callback):
    """Write the pictures that the module's ``pictures(images)`` gives: for every method at least its views.

    Each becomes a grid, one row an image, in ``<log_dir>/pictures/<name>-step=<n>.png`` and in TensorBoard. It does
    nothing for modules without ``pictures``, and takes no random number from the run.

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
        if batch_idx > 0 or trainer.current_epoch % self.every_n_epochs or not trainer.is_global_zero:
            return
        images = (
            batch.get("image") if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
        )
        if not hasattr(pl_module, "pictures") or not isinstance(images, Tensor):
            return
        with frozen(pl_module):
            torch.manual_seed(0)  # the same crops and colours each time; `frozen` puts the run's state back
            drawn = pl_module.pictures(images[: self.images])  # type: ignore[operator]
        for name, tiles in drawn.items():
            self._write(trainer, name, tiles.float().cpu())

    def _write(self, trainer: Trainer, name: str, tiles: Tensor) -> None:
        columns = tiles.shape[1]
        flat = tiles.flatten(0, 1)  # (rows · columns, C, H, W)
        if flat.shape[1] not in (1, 3):
            flat = flat[:, :3] if flat.shape[1] > 3 else flat[:, :1]
        factor = -(-self.min_side // flat.shape[-1])
        flat = flat.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        grid = make_grid(flat, nrow=columns, padding=4, pad_value=1.0)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"pictures/{name}", grid, trainer.global_step)
        if trainer.log_dir is not None and trainer.loggers:
            folder = Path(trainer.log_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            save_image(grid, folder / f"{name}-step={trainer.global_step}.png")
