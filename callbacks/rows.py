"""Which picture each row of a prediction belongs to, and one result of all processes, from ``predict``."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from sslmodules.storage import atomic_write, check_writable

LOADER = 1 << 40  # from the place of an item in one loader to the same place in the next

Chunks = list[Any]  # of a column, one a batch: tensors (b, ...), or lists of b objects


class Rows(NamedTuple):
    """Rows of predictions by their place in the data."""

    places: Tensor  # (N,) int64
    columns: Mapping[str, Any]  # tensors (N, ...), or lists of N objects


class Places:
    """Places in the data of what ``predict`` gives, one an item; files that could not be read have none."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.files = predicted_files(trainer)
        self._turns: Counter[int] = Counter()

    def of(self, batch_indices: Sequence[int] | None, count: int, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Find the rows of a prediction that belong to an item of the data.

        Args:
            batch_indices: items of the batch, as Lightning tells them; None where it does not know. The processes then
                are taken to have drawn items in turn.
            count: rows of the prediction.
            dataloader_idx: which loader the batch is from.

        Returns:
            Which rows (n,) of the prediction these are, and their places (n,) in the data.

        Raises:
            ValueError: the prediction does not have a row for each item.
        """
        if not batch_indices:
            turns = self._turns[dataloader_idx] + torch.arange(count)
            self._turns[dataloader_idx] += count
            places = turns * self.trainer.world_size + self.trainer.global_rank
            return torch.arange(count), places + dataloader_idx * LOADER
        places = torch.as_tensor(batch_indices)
        data = _dataset(self.trainer, dataloader_idx)
        out = data.left_out(batch_indices) if hasattr(data, "left_out") else torch.zeros(len(places), dtype=torch.bool)
        kept = torch.nonzero(~out).flatten()
        if count == len(places):  # another file may stand in the place of one that could not be read
            rows = kept
        elif count == len(kept):
            rows = torch.arange(count)
        elif len(kept) == 0:  # a batch of which nothing could be read
            rows = kept
        else:
            raise ValueError(f"predict_step gave {count} rows for a batch of {len(kept)} items; it must give one each")
        return rows, places[kept] + dataloader_idx * LOADER

    def named(self, places: Tensor) -> list[str] | None:
        """Files of places, as the DataModule lists them; None where they lie in none."""
        if not len(places) or not 0 <= int(places.max()) < len(self.files):
            return None
        return [self.files[place] for place in places.tolist()]


def predicted_files(trainer: Trainer) -> list[str]:
    """Return the files that are predicted on, in the order of the data; [] where the data lie in none."""
    data = _dataset(trainer, 0)
    found = getattr(data, "files", None) or []
    if not found and hasattr(getattr(trainer, "datamodule", None), "files"):
        found = trainer.datamodule.files("predict")  # type: ignore[attr-defined]
    return [str(file) for file in found]


def _dataset(trainer: Trainer, dataloader_idx: int) -> Any:
    loaders: Any = trainer.predict_dataloaders
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    loader = loaders[dataloader_idx] if isinstance(loaders, (list, tuple)) else loaders
    return getattr(loader, "dataset", None)


class RowWriter(BasePredictionWriter):
    """Write one file of what ``predict`` gives, each item of the data once and in order, whatever process predicted it.

    A subclass says by :meth:`keep` what it keeps of a batch and by :meth:`write` how that is written. With several
    processes, each writes its part into a folder beside the target, and the first one reads them.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__("batch")
        self.path = Path(path)
        self._begin()

    def _begin(self) -> None:
        self._kept: list[Tensor] = []  # places
        self._chunks: defaultdict[str, Chunks] = defaultdict(list)

    def keep(self, prediction: Mapping[str, Any], batch: Any, pl_module: LightningModule) -> dict[str, Any] | None:
        """Return the columns that are kept of a batch, (B, ...) tensors or lists of B; None keeps nothing of it."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing: write keep(prediction, batch, pl_module)")

    def write(self, rows: Rows, files: list[str] | None, pl_module: LightningModule) -> None:
        """Write what was kept, on the first process."""
        raise NotImplementedError(f"{type(self).__name__} writes nothing: write write(rows, files, pl_module)")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin()
        self._places = Places(trainer)

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
        """Keep the rows of a batch; after the first, see whether the target can be written and has room."""
        columns = self.keep(prediction, batch, pl_module) if isinstance(prediction, Mapping) else None
        if columns is None:
            return
        count = len(next(iter(columns.values())))
        rows, places = self._places.of(batch_indices, count, dataloader_idx)
        if not self._kept:
            bytes_each = sum(x[:1].nbytes for x in columns.values() if isinstance(x, Tensor))
            check_writable(self.path, bytes_each * self._expected(trainer, dataloader_idx, count))
        self._kept.append(places)
        for name, column in columns.items():
            picked = column[rows].cpu() if isinstance(column, Tensor) else [column[row] for row in rows.tolist()]
            self._chunks[name].append(picked)

    def _expected(self, trainer: Trainer, dataloader_idx: int, count: int) -> int:
        """How many rows there will be, and how many times they are written: by the processes as parts too."""
        data, batches = _dataset(trainer, dataloader_idx), trainer.num_predict_batches[dataloader_idx]
        rows = count * trainer.world_size * (batches if np.isfinite(batches) else 1)
        return int(min(rows, len(data)) if hasattr(data, "__len__") else rows) * (1 + (trainer.world_size > 1))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write them."""
        kept, chunks = self._kept, self._chunks
        self._begin()
        rows = gathered(trainer, kept, chunks, self.path)
        if rows is not None:
            self.write(rows, self._places.named(rows.places), pl_module)


def gathered(trainer: Trainer, kept: list[Tensor], chunks: Mapping[str, Chunks], beside: Path) -> Rows | None:
    """Collect rows of all processes, each place once, in the order of the places.

    Args:
        trainer: knows the other processes, all of which must call this.
        kept: places, one tensor a batch.
        chunks: columns of these rows. They are emptied.
        beside: path beside which the processes' parts lie meanwhile, in a folder that all can see.

    Returns:
        The rows, on the first process; None on the others, and where no process has any.
    """
    count = torch.tensor(sum(map(len, kept)), device=trainer.strategy.root_device)
    if int(trainer.strategy.reduce(count, reduce_op="sum")) == 0:
        return None
    parts = [(kept, dict(chunks))]
    if trainer.world_size > 1:
        folder = beside.with_name(f".{beside.name}-parts")
        with atomic_write(folder / f"{trainer.global_rank}.pt") as file:
            torch.save(parts[0], file)
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return None
        read = [folder / f"{rank}.pt" for rank in range(trainer.world_size)]
        missing = next((path for path in read if not path.is_file()), None)
        if missing is not None:
            raise ValueError(f"{missing}, the part of another process, is not here; pass a path that all machines see")
        parts = [torch.load(path, mmap=True, weights_only=True) for path in read]
        shutil.rmtree(folder)
    places = torch.cat([chunk for places, _ in parts for chunk in places])
    _, order = np.unique(places.numpy(), return_index=True)
    in_order = len(order) == len(places) and bool((np.diff(order) > 0).all())
    columns = {}
    for name in sorted({name for _, columns in parts for name in columns}):
        values = [chunk for _, columns in parts for chunk in columns.pop(name, [])]
        column = torch.cat(values) if isinstance(values[0], Tensor) else [item for chunk in values for item in chunk]
        if len(column) == len(places):  # labels, where only some batches have them, are those of nobody
            columns[name] = column if in_order else _picked(column, order)
    return Rows(places if in_order else places[order], columns)


def _picked(column: Any, order: np.ndarray) -> Any:
    return column[order] if isinstance(column, Tensor) else [column[row] for row in order.tolist()]
