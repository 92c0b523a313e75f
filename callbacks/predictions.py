"""Answers of a classifier as a table, from ``predict``."""

import csv
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule

from sslmodules.callbacks.rows import Rows, RowWriter
from sslmodules.storage import atomic_path


class PredictionWriter(RowWriter):
    """Write the ``"probabilities"`` (B, C) that ``predict`` gives into a CSV file, one row a file; nothing without.

    Of classes that exclude each other the columns are ``file``, ``class``, ``probability``, ``class_2``,
    ``probability_2``, ... with the most probable first. Where an image may have several (the module says
    ``multi_label``), they are ``file`` and each class, with its probability. Classes are named as by the module's
    ``class_names``, else numbered. Data that lie in no files have their place in them, ``row``, in the place of
    ``file``.

    Args:
        path: file to write.
        k: how many of the most probable classes are written, at most as many as there are.

    Raises:
        ValueError: k below 1.
        StorageError: after the first batch, a path that cannot be written.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(callbacks=[PredictionWriter(k=3)], logger=False)
    """

    def __init__(self, path: str = "predictions.csv", k: int = 5) -> None:
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1: how many of the most probable classes are written")
        super().__init__(path)
        self.k = k

    def keep(self, prediction: Mapping[str, Any], batch: Any, pl_module: LightningModule) -> dict[str, Any] | None:
        """Return the most probable classes, or the probabilities of all where an image may have several."""
        probabilities = prediction.get("probabilities")
        if probabilities is None:
            return None
        self._classes = probabilities.shape[1]
        if getattr(pl_module, "multi_label", False):
            return {"probabilities": probabilities.float()}
        best = probabilities.float().topk(min(self.k, self._classes), 1)
        return {"probabilities": best.values, "classes": best.indices}

    def write(self, rows: Rows, files: list[str] | None, pl_module: LightningModule) -> None:
        """Write the table, and say where it is."""
        names = getattr(pl_module, "class_names", None) or list(map(str, range(self._classes)))
        header, cells = _ranked(rows, names) if "classes" in rows.columns else _by_class(rows, names)
        items: list[Any] = rows.places.tolist() if files is None else files
        with (
            atomic_path(self.path) as path,
            # Names of files may hold bytes that are no UTF-8.
            path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            table = csv.writer(file)
            table.writerow(["row" if files is None else "file", *header])
            table.writerows([item, *row] for item, row in zip(items, cells, strict=True))
        print(f"predictions for {len(items)} inputs in {self.path}")


def _ranked(rows: Rows, names: list[str]) -> tuple[list[str], Iterator[list[str]]]:
    k = rows.columns["classes"].shape[1]
    header = [
        f"{name}{f'_{rank}' if rank > 1 else ''}" for rank in range(1, k + 1) for name in ("class", "probability")
    ]
    pairs = zip(rows.columns["classes"].tolist(), rows.columns["probabilities"].tolist(), strict=True)
    return header, (
        [cell for number, p in zip(classes, values, strict=True) for cell in (names[number], f"{p:.6g}")]
        for classes, values in pairs
    )


def _by_class(rows: Rows, names: list[str]) -> tuple[list[str], Iterator[list[str]]]:
    return names, ([f"{p:.6g}" for p in values] for values in rows.columns["probabilities"].tolist())
