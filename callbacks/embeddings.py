"""Embeddings on disk and in TensorBoard, from ``predict``."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sslmodules.batch import unpack
from sslmodules.callbacks.rows import Rows, RowWriter
from sslmodules.storage import atomic_path
from sslmodules.views import center_square, to_float

DEFAULT_PATH = "embeddings.npz"
ANSWERS = ("probabilities", "masks", "boxes")  # of a classifier, which is asked for these and not for features


class EmbeddingWriter(RowWriter):
    """Write what ``predict`` gives into one file: ``features`` (N, D), ``labels`` (N,) if any, ``files`` if known.

    Rows are in the order of the data, each once, also with several processes. Files that could not be read have none.

    Args:
        path: file to write: arrays as ``.npz``, or a table as ``.parquet`` (``pip install "sslmodules[parquet]"``).
            None is ``embeddings.npz``, and nothing for a classifier, whose answers are written by others.

    Raises:
        ValueError: when predicting begins, a ``.parquet`` without pyarrow.
        StorageError: after the first batch, a path that cannot be written.

    >>> trainer = Trainer(callbacks=[EmbeddingWriter("embeddings.npz")], logger=False)
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(path or DEFAULT_PATH)
        self.always = path is not None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for what writing will need."""
        super().on_predict_start(trainer, pl_module)
        if self.path.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise ValueError(
                f'writing {self.path} needs pyarrow: pip install "sslmodules[parquet]", or pass a path ending in .npz'
            )

    def keep(self, prediction: Mapping[str, Any], batch: Any, pl_module: LightningModule) -> dict[str, Any] | None:
        """Return features and labels."""
        if "features" not in prediction or not (self.always or prediction.keys().isdisjoint(ANSWERS)):
            return None
        kept = {"features": prediction["features"].float()}
        return kept if prediction.get("labels") is None else {**kept, "labels": prediction["labels"]}

    def write(self, rows: Rows, files: list[str] | None, pl_module: LightningModule) -> None:
        """Write the file, and say where it is."""
        arrays = {name: column.numpy() for name, column in rows.columns.items()}
        if files is not None:
            arrays["files"] = np.array(files)
        with atomic_path(self.path) as path, path.open("wb") as file:
            if self.path.suffix == ".parquet":
                _write_parquet(file, arrays)
            else:
                np.savez(file, **arrays)
        print(f"{len(arrays['features'])} embeddings of length {arrays['features'].shape[1]} in {self.path}")


def _write_parquet(file: Any, arrays: Mapping[str, np.ndarray]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {name: pyarrow.array(array) for name, array in arrays.items() if array.ndim == 1}
    features = arrays["features"]
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    parquet.write_table(pyarrow.table({"features": rows, **columns}), file)


class EmbeddingProjector(RowWriter):
    """Write what ``predict`` gives for TensorBoard's embedding projector: features, labels if any, and thumbnails.

    ``tensorboard --logdir <folder>`` then shows them, under "Projector".

    Args:
        folder: where to write; None writes nothing.
        images: how many, the first ones; TensorBoard shows some thousands at most.
        side: of the thumbnails, in pixels, cut out of the middle. Sounds and videos have none.

    >>> trainer = Trainer(callbacks=[EmbeddingProjector("projector")], logger=False)
    """

    def __init__(self, folder: str | None = None, images: int = 2000, side: int = 32) -> None:
        super().__init__(Path(folder or "", "projector_config.pbtxt"))  # TensorBoard's
        self.folder = folder
        self.images = images
        self.side = side

    def keep(self, prediction: Mapping[str, Any], batch: Any, pl_module: LightningModule) -> dict[str, Any] | None:
        """Return what will be shown of a batch."""
        # Each process keeps as many as are shown in all, for it does not know how many the others have.
        if self.folder is None or sum(map(len, self._kept)) >= self.images or "features" not in prediction:
            return None
        kept = {"features": prediction["features"].float()}
        labels, images = prediction.get("labels"), unpack(batch).images
        if labels is not None:
            kept["labels"] = labels
        if images is not None and images.ndim == 4:
            kept["thumbnails"] = _thumbnails(images, self.side)
        return kept

    def write(self, rows: Rows, files: list[str] | None, pl_module: LightningModule) -> None:
        """Write everything, and say where it is."""
        shown = {name: column[: self.images] for name, column in rows.columns.items()}
        with SummaryWriter(str(self.folder)) as writer:
            writer.add_embedding(
                shown["features"],
                metadata=[str(label) for label in shown["labels"].tolist()] if "labels" in shown else None,
                label_img=shown.get("thumbnails"),
            )
        print(f"{len(shown['features'])} embeddings for TensorBoard's projector in {self.folder}")


def _thumbnails(images: Tensor, side: int) -> Tensor:
    """The middle squares of images, (B, 3, side, side) in [0, 1]."""
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return center_square(to_float(images).clamp(0, 1), side)
