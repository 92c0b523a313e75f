"""Embeddings on disk and in TensorBoard, from ``predict``."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sslmodules.batch import unpack
from sslmodules.views import center_square, to_float


class EmbeddingWriter(BasePredictionWriter):
    """Write what ``predict`` gives into one file: ``features`` (N, D), ``labels`` (N,) if any, ``files`` if known.

    Rows are in the order of the loader. With several processes each writes its own file, its rank in the name.

    Args:
        path: file to write: arrays as ``.npz``, or a table as ``.parquet`` (``pip install "sslmodules[parquet]"``).

    Raises:
        ValueError: when predicting begins, a ``.parquet`` without pyarrow.

    >>> trainer = Trainer(callbacks=[EmbeddingWriter("embeddings.npz")], logger=False)
    """

    def __init__(self, path: str = "embeddings.npz") -> None:
        super().__init__("epoch")
        self.path = Path(path)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for what writing will need."""
        if self.path.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise ValueError(
                f'writing {self.path} needs pyarrow: pip install "sslmodules[parquet]", or pass a path ending in .npz'
            )

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write the file, and say where it is."""
        arrays = {"features": torch.cat([p["features"].float().cpu() for p in predictions]).numpy()}
        if all(p["labels"] is not None for p in predictions):
            arrays["labels"] = torch.cat([p["labels"].cpu() for p in predictions]).numpy()
        datamodule: Any = getattr(trainer, "datamodule", None)
        files = datamodule.files("predict") if hasattr(datamodule, "files") else []
        if len(files) == len(arrays["features"]):
            arrays["files"] = np.array([str(f) for f in files])
        path = self.path
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            _write_parquet(path, arrays)
        else:
            np.savez(path, **arrays)  # type: ignore[arg-type]
        print(f"{len(arrays['features'])} embeddings of length {arrays['features'].shape[1]} in {path}")


def _write_parquet(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {name: pyarrow.array(array) for name, array in arrays.items() if array.ndim == 1}
    features = arrays["features"]
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    parquet.write_table(pyarrow.table({"features": rows, **columns}), path)


class EmbeddingProjector(BasePredictionWriter):
    """Write what ``predict`` gives for TensorBoard's embedding projector: features, labels if any, and thumbnails.

    ``tensorboard --logdir <folder>`` then shows them, under "Projector". Each process writes its own, in a folder of
    its rank.

    Args:
        folder: where to write; None writes nothing.
        images: how many, the first ones; TensorBoard shows some thousands at most.
        side: of the thumbnails, in pixels, cut out of the middle. Sounds and videos have none.

    >>> trainer = Trainer(callbacks=[EmbeddingProjector("projector")], logger=False)
    """

    def __init__(self, folder: str | None = None, images: int = 2000, side: int = 32) -> None:
        super().__init__("batch")
        self.folder = folder
        self.images = images
        self.side = side
        self._parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._parts = []

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
        """Keep what will be shown of a batch."""
        left = self.images - sum(len(features) for features, _, _ in self._parts)
        if self.folder is None or left <= 0 or not isinstance(prediction, Mapping) or "features" not in prediction:
            return
        labels, images = prediction.get("labels"), unpack(batch).images
        self._parts.append(
            (
                prediction["features"][:left].float().cpu(),
                None if labels is None else labels[:left].cpu(),
                None if images is None or images.ndim != 4 else _thumbnails(images[:left], self.side).cpu(),
            )
        )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything, and say where it is."""
        if self.folder is None or not self._parts:
            return
        features, labels, images = zip(*self._parts, strict=True)
        folder = Path(self.folder) / (f"rank{trainer.global_rank}" if trainer.world_size > 1 else "")
        with SummaryWriter(str(folder)) as writer:
            writer.add_embedding(
                torch.cat(features),
                metadata=None if labels[0] is None else [str(label) for part in labels for label in part.tolist()],
                label_img=None if images[0] is None else torch.cat(images),
            )
        print(f"{sum(map(len, features))} embeddings for TensorBoard's projector in {folder}")
        self._parts = []


def _thumbnails(images: Tensor, side: int) -> Tensor:
    """The middle squares of images, (B, 3, side, side) in [0, 1]."""
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return center_square(to_float(images).clamp(0, 1), side)
