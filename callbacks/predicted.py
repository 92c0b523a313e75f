"""Predicted pictures on disk, from ``predict``."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torchvision.transforms.functional import to_pil_image


class PictureWriter(BasePredictionWriter):
    """Write the ``"pictures"`` that ``predict`` gives as PNG files, batch by batch; nothing where there are none.

    Files are named after those that were read, with the folders below the deepest one that holds them all. Where two
    would share a name (of ``1.jpg`` and ``1.png``), all keep their endings: ``1.jpg.png``. Pictures of unknown files
    are numbered in the order of the loader. What is written is taken out of the prediction, so that a long run does
    not fill the memory. Several processes write into one folder.

    Args:
        folder: where to write; it is made where it is missing. Pictures of an earlier run are written over.

    Raises:
        ValueError: a picture would be written over one that is read.

    >>> trainer = Trainer(callbacks=[PictureWriter("predicted")], logger=False)
    """

    def __init__(self, folder: str = "predicted") -> None:
        super().__init__("batch")
        self.folder = Path(folder)
        self._names: list[Path] = []  # of the files to write, by the number of the image in the dataset
        self._read: set[Path] = set()
        self._written: Counter[int] = Counter()  # pictures of this process, by loader

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn the names of the files."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        files = [Path(f).absolute() for f in datamodule.files("predict")] if hasattr(datamodule, "files") else []
        self._names, self._read, self._written = [], set(), Counter()
        if files:
            root = os.path.commonpath([f.parent for f in files])
            relative = [f.relative_to(root) for f in files]
            self._read = {Path(os.path.realpath(root)) / r for r in relative}
            self._names = [r.with_suffix(".png") for r in relative]
            if len({str(name).lower() for name in self._names}) < len(files):
                self._names = [r.with_name(f"{r.name}.png") for r in relative]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the pictures of one batch."""
        pictures = prediction.pop("pictures", None) if isinstance(prediction, dict) else None
        if pictures is None:
            return
        pixels = (pictures.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()  # (B, C, H, W)
        folder = Path(os.path.realpath(self.folder))
        if dataloader_idx > 0:  # the names are those of the first loader's images
            folder, batch_indices = folder / str(dataloader_idx), None
        for i, picture in enumerate(pixels):
            # Processes deal the images out among them, one each, in turn.
            turn = self._written[dataloader_idx] * trainer.world_size + trainer.global_rank
            number = batch_indices[i] if batch_indices else turn
            named = dataloader_idx == 0 and number < len(self._names)
            path = folder / (self._names[number] if named else f"{number:06d}.png")
            if path in self._read:
                raise ValueError(
                    f"{path} is one of the pictures that are read, and would be written over; pass another folder "
                    "(--predicted.folder)"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(picture).save(path)
            self._written[dataloader_idx] += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many pictures all processes have written, and where."""
        written = torch.tensor(self._written.total(), device=trainer.strategy.root_device)
        total = int(trainer.strategy.reduce(written, reduce_op="sum"))
        if total and trainer.is_global_zero:
            print(f"{total} pictures in {self.folder}")
