"""What the online probes share: counting correct predictions on held-out images."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from sslmodules.callbacks.features import Labeled, Reads, labeled_features


class HeldOutAccuracy(Callback):
    """Log ``<name>/val_accuracy`` of a classifier of features; a subclass says when it is ready and what it scores."""

    name: str
    reads: Reads
    _accuracy: MeanMetric | None = None

    @property
    def ready(self) -> bool:
        """Whether there is anything to measure yet: not in the sanity check before the first step."""
        raise NotImplementedError

    def scores(self, trainer: Trainer, labeled: Labeled) -> Tensor:
        """Scores (B, C) of the classes."""
        raise NotImplementedError

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint."""
        return self._generate_state_key(name=self.name)

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
        """Count the correct predictions on one held-out batch."""
        if not self.ready or dataloader_idx > 0:
            return
        labeled = labeled_features(trainer, pl_module, outputs, batch, self.reads)
        if labeled is None:
            return
        assert self._accuracy is not None
        correct, known = correct_and_known(self.scores(trainer, labeled), labeled.labels)
        self._accuracy.update(correct, weight=known)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy over all held-out labels."""
        if self._accuracy is not None and self._accuracy.update_called:
            pl_module.log(f"{self.name}/val_accuracy", self._accuracy.compute(), prog_bar=True)
        self._accuracy = None


def correct_and_known(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Correct (B,) and labeled (B,), as numbers: selecting the labeled rows instead would wait for the device."""
    return (scores.argmax(1) == labels).float(), (labels >= 0).float()
