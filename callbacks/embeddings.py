"""Embeddings on disk, from ``predict``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter


class EmbeddingWriter(BasePredictionWriter):
    """Write what ``predict`` gives into one ``.npz``: ``features`` (N, D), ``labels`` (N,) if any, ``files`` if known.

    Rows are in the order of the loader. With several processes each writes its own file, its rank in the name.

    Args:
        path: file to write.

    >>> trainer = Trainer(callbacks=[EmbeddingWriter("embeddings.npz")], logger=False)
    """

    def __init__(self, path: str = "embeddings.npz") -> None:
        super().__init__("epoch")
        self.path = Path(path)

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
        np.savez(path, **arrays)  # type: ignore[arg-type]
        print(f"{len(arrays['features'])} embeddings of length {arrays['features'].shape[1]} in {path}")
