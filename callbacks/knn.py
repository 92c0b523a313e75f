"""A nearest-neighbour classifier on the features of the latest training images."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from sslmodules.callbacks.features import Reads, labeled_features, number_of_classes
from sslmodules.distributed import gather
from sslmodules.metrics import knn_scores


class OnlineKNN(Callback):
    """Classify held-out images by their neighbours among the latest labeled training images; log ``knn/val_accuracy``.

    In training it only keeps features that the step has computed: those of augmented views, a little behind the
    encoder. :func:`sslmodules.evaluation.probe` measures with clean images of the whole training set. It attaches
    to any LightningModule whose ``forward`` gives (B, D).

    Args:
        num_classes: None takes ``num_classes`` of the DataModule.
        k: neighbours that vote.
        temperature: of the votes; 0.07 as in DINO, 0.1 with k = 200 in the CIFAR literature.
        bank_size: labeled training images that are remembered, over all ranks.
        reads: ``"features"`` or ``"projections"``.
        name: prefix of the logged metric; two on one Trainer need two names.

    Raises:
        ValueError: the number of classes is unknown.

    >>> trainer = Trainer(callbacks=[OnlineKNN(num_classes=10, k=5)], logger=False)
    """

    def __init__(
        self,
        num_classes: int | None = None,
        k: int = 20,
        temperature: float = 0.07,
        bank_size: int = 8192,
        reads: Reads = "features",
        name: str = "knn",
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
        self._accuracy: MeanMetric | None = None

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint."""
        return self._generate_state_key(name=self.name)

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

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new count."""
        self._accuracy = MeanMetric(nan_strategy="disable").to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Classify the images of one held-out batch."""
        if self._bank is None or self._labels is None or dataloader_idx > 0:
            return
        labeled = labeled_features(trainer, pl_module, outputs, batch, self.reads)
        if labeled is None:
            return
        assert self._accuracy is not None
        classes = number_of_classes(trainer, self.num_classes, type(self).__name__)
        bank, bank_labels = self._bank.to(labeled.features), self._labels.to(labeled.labels)
        votes = knn_scores(labeled.features, bank, bank_labels, classes, self.k, self.temperature)
        self._accuracy.update((votes.argmax(1) == labeled.labels).float(), weight=(labeled.labels >= 0).float())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy over all held-out labels."""
        if self._accuracy is not None and self._accuracy.update_called:
            pl_module.log(f"{self.name}/val_accuracy", self._accuracy.compute(), prog_bar=True)
        self._accuracy = None

    def state_dict(self) -> dict[str, Any]:
        """Give what is remembered."""
        return {} if self._bank is None else {"bank": self._bank, "labels": self._labels, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was remembered."""
        self._bank, self._labels = state_dict.get("bank"), state_dict.get("labels")
        self._position = state_dict.get("position", 0)
