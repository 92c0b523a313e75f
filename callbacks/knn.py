"""A nearest-neighbour classifier on the features of the latest training images."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from sslmodules.callbacks.features import Labeled, Reads, labeled_features
from sslmodules.callbacks.held_out import HeldOutAccuracy
from sslmodules.distributed import gather
from sslmodules.metrics import knn_scores


class OnlineKNN(HeldOutAccuracy):
    """Classify held-out images by their neighbours among the latest labeled training images.

    The accuracy is logged as ``probe/knn/val_accuracy``. In training it only keeps features that the step has computed:
    those of augmented views, a little behind the encoder. :func:`sslmodules.evaluation.probe` measures with clean
    images of the whole training set. It attaches to any LightningModule whose ``forward`` gives (B, D).

    Args:
        num_classes: None takes ``num_classes`` of the DataModule.
        k: neighbours that vote.
        temperature: of the votes; 0.07 as in DINO, 0.1 with k = 200 in the CIFAR literature.
        bank_size: labeled training images that are remembered, over all ranks.
        reads: ``"features"``, ``"projections"`` or a stage of the encoder; see :class:`OnlineLinearProbe`.
        name: prefix of the logged metric; two on one Trainer need two names.

    Raises:
        ValueError: the number of classes is unknown, or a label is no class.

    >>> trainer = Trainer(callbacks=[OnlineKNN(num_classes=10, k=5)], logger=False)
    """

    def __init__(
        self,
        num_classes: int | None = None,
        k: int = 20,
        temperature: float = 0.07,
        bank_size: int = 8192,
        reads: Reads = "features",
        name: str = "probe/knn",
    ) -> None:
        self.num_classes = num_classes
        self.k = k
        self.temperature = temperature
        self.bank_size = bank_size
        self.reads = reads
        self.name = name
        self._bank: Tensor | None = None  # (bank_size, D)
        self._labels: Tensor | None = None  # (bank_size,), -1 where nothing has been written yet
        self._position = 0

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember this batch in the place of the oldest."""
        labeled = labeled_features(trainer, pl_module, outputs, batch, self.reads)
        if labeled is None:
            return
        features, labels = gather(labeled.features), gather(labeled.labels)
        features, labels = features[-self.bank_size :], labels[-self.bank_size :]
        if self._bank is None:
            self._bank = features.new_zeros(self.bank_size, features.shape[1])
            self._labels = labels.new_full((self.bank_size,), -1)
        assert self._labels is not None
        self._bank, self._labels = self._bank.to(features), self._labels.to(labels)
        position = (torch.arange(len(labels), device=labels.device) + self._position) % self.bank_size
        self._bank.index_copy_(0, position, features)
        self._labels.index_copy_(0, position, labels)
        self._position = (self._position + len(labels)) % self.bank_size

    @property
    def ready(self) -> bool:
        """Whether anything has been remembered."""
        return self._bank is not None

    def scores(self, trainer: Trainer, labeled: Labeled) -> Tensor:
        """Votes (B, C) of the neighbours."""
        assert self._bank is not None
        assert self._labels is not None
        bank, bank_labels = self._bank.to(labeled.features), self._labels.to(labeled.labels)
        return knn_scores(labeled.features, bank, bank_labels, self.classes(trainer), self.k, self.temperature)

    def state_dict(self) -> dict[str, Any]:
        """Give what is remembered."""
        return {} if self._bank is None else {"bank": self._bank, "labels": self._labels, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was remembered."""
        self._bank, self._labels = state_dict.get("bank"), state_dict.get("labels")
        self._position = state_dict.get("position", 0)
