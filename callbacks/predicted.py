"""Predicted pictures and masks on disk, from ``predict``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image, ImageColor
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from sslmodules.callbacks.rows import LOADER, Places, gathered
from sslmodules.datamodules.pictures import picture_size, read_picture
from sslmodules.storage import atomic_path
from sslmodules.views.lab import with_colors


class PNGWriter(BasePredictionWriter):
    """Write a PNG file for each item of the data; a subclass says by :meth:`take` and :meth:`draw` what.

    Files are named after those that were read, with the folders below the deepest one that holds them all. Where two
    would share a name (of ``1.jpg`` and ``1.png``), all keep their endings: ``1.jpg.png``. Pictures of unknown files
    are numbered in the order of the data. What is written is taken out of the prediction, so that a long run does not
    fill the memory. Several processes write into one folder.

    Args:
        folder: where to write; it is made where it is missing. Pictures of an earlier run are written over.

    Raises:
        ValueError: a picture would be written over one that is read.
        StorageError: at the first picture, a folder that cannot be written into.
    """

    option: ClassVar[str]  # that sets the folder on the command line
    what: ClassVar[str]  # is written

    def __init__(self, folder: str) -> None:
        super().__init__("batch")
        self.folder = Path(folder)
        self._names: list[Path] = []  # of the files to write, by the place of the image in the data
        self._read: set[Path] = set()
        self._written: list[Tensor] = []  # places of the pictures of this process

    def take(self, prediction: dict[str, Any]) -> Any:
        """Take what will be drawn out of a prediction, one a row; None where there is nothing."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing: write take(prediction)")

    def draw(self, taken: Any, row: int, file: str | None, pl_module: LightningModule) -> Image.Image:
        """Draw a row of what was taken; ``file`` is the picture that was read, where it is known."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing: write draw(taken, row, file, pl_module)")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn the names of the files."""
        self._places, self._written = Places(trainer), []
        files = [Path(f).absolute() for f in self._places.files]
        self._names, self._read = [], set()
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
        taken = self.take(prediction) if isinstance(prediction, dict) else None
        if taken is None:
            return
        count = len(next(iter(taken.values())) if isinstance(taken, Mapping) else taken)
        rows, places = self._places.of(batch_indices, count, dataloader_idx)
        folder = Path(os.path.realpath(self.folder)) / (str(dataloader_idx) if dataloader_idx > 0 else "")
        for row, place in zip(rows.tolist(), (places - dataloader_idx * LOADER).tolist(), strict=True):
            known = dataloader_idx == 0 and place < len(self._names)  # names are those of the first loader's images
            path = folder / (self._names[place] if known else f"{place:06d}.png")
            if path in self._read:
                raise ValueError(
                    f"{path} is one of the pictures that are read, and would be written over; pass another folder "
                    f"({self.option})"
                )
            picture = self.draw(taken, row, self._places.files[place] if known else None, pl_module)
            with atomic_path(path) as temporary:
                picture.save(temporary, format="PNG")
        self._written.append(places)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many pictures all processes have written, and where."""
        rows = gathered(trainer, self._written, {}, self.folder)
        if rows is not None:
            print(f"{len(rows.places)} {self.what} in {self.folder}")


class PictureWriter(PNGWriter):
    """Write the ``"pictures"`` that ``predict`` gives as PNG files, batch by batch; nothing where there are none.

    Where it gives ``"colors"`` (B, 2, h, w) as well, as :class:`~sslmodules.Colorization` does, the picture is read
    again from its file at full size, and gets these colors with its own lightness; it is written upright, without EXIF.
    See :class:`PNGWriter` for names and errors.

    Args:
        folder: where to write; it is made where it is missing. Pictures of an earlier run are written over.

    >>> trainer = Trainer(callbacks=[PictureWriter("predicted")], logger=False)
    """

    option = "--predicted.folder"
    what = "pictures"

    def __init__(self, folder: str = "predicted") -> None:
        super().__init__(folder)

    def take(self, prediction: dict[str, Any]) -> Any:
        """Take the pictures, and their colors where these are given."""
        found = {name: prediction.pop(name, None) for name in ("pictures", "colors")}
        return {name: value for name, value in found.items() if value is not None} or None

    def draw(self, taken: Any, row: int, file: str | None, pl_module: LightningModule) -> Image.Image:
        """Return the picture that was predicted, or that of the file in the colors that were."""
        if file is None or "colors" not in taken:
            picture = taken["pictures"][row]
        else:
            original = read_picture(file, picture_size(file))
            colors = taken["colors"][row : row + 1]
            picture = with_colors(original[None].to(colors.device), colors)[0]
        return to_pil_image((picture.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu())


class MaskWriter(PNGWriter):
    """Write the ``"masks"`` (B, H, W) of class numbers that ``predict`` gives as PNG files with a palette.

    A pixel holds the number of its class, from 0; a mask is as large as the picture that was read. Beside them,
    ``classes.txt`` has the name of each class in its line, where the module knows them. See :class:`PNGWriter` for
    names and errors.

    Args:
        folder: where to write; it is made where it is missing. Masks of an earlier run are written over.

    >>> trainer = Trainer(callbacks=[MaskWriter("masks")], logger=False)
    """

    option = "--masks.folder"
    what = "masks"

    def __init__(self, folder: str = "masks") -> None:
        super().__init__(folder)

    def take(self, prediction: dict[str, Any]) -> Any:
        """Take the masks."""
        return prediction.pop("masks", None)

    def draw(self, taken: Any, row: int, file: str | None, pl_module: LightningModule) -> Image.Image:
        """Return a mask, enlarged to the picture's size where the network has seen it smaller."""
        mask = Image.fromarray(taken[row].to(torch.uint8).cpu().numpy()).convert("L")
        mask.putpalette([channel for color in class_colors(256) for channel in color])
        if file is not None:
            height, width = picture_size(file)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        return mask

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the names of the classes, and say where the masks are."""
        names = getattr(pl_module, "class_names", None)
        if self._written and names and trainer.is_global_zero:
            with atomic_path(self.folder / "classes.txt") as path:
                path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        super().on_predict_end(trainer, pl_module)


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """Return a color for each class, RGB from 0 to 255; those of neighbors in number are far apart.

    >>> class_colors(2)
    [(255, 0, 0), (0, 255, 72)]
    """
    return [ImageColor.getrgb(f"hsl({137 * number % 360}, 100%, 50%)") for number in range(count)]  # type: ignore[misc]
