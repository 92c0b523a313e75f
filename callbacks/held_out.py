"""What the online probes share: counting correct predictions on held-out images."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from sslmodules.callbacks.features import (
    Labeled,
    Reads,
    check_labels,
    known_classes,
    labeled_features,
    labeled_part,
    number_of_classes,
)


class HeldOutAccuracy(Callback):
    """Log ``<name>/val_accuracy`` of a classifier of features; a subclass says when it is ready and what it scores."""

    name: str
    reads: Reads
    num_classes: int | None
    _known: tuple[int | None] | None = None  # number of classes as the run knows it, once it has been asked for
    _accuracy: MeanMetric | None = None

    @property
    def ready(self) -> bool:
        """Whether there is anything to measure yet: not in the sanity check before the first step."""
        raise NotImplementedError

    def scores(self, trainer: Trainer, labeled: Labeled) -> Tensor:
        """Scores (B, C) of the classes."""
        raise NotImplementedError

    def classes(self, trainer: Trainer) -> int:
        """Number of classes, as given or as the DataModule says, which may have to read all labels for it."""
        return number_of_classes(trainer, self._ask(trainer), type(self).__name__)

    def check_batch(self, trainer: Trainer, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where a label of a batch is no class.

        A method of this package has every batch checked while it is on the host, where nothing waits for the device.
        """
        part = labeled_part(batch)
        if part is not None:
            check_labels(part[1], self._ask(trainer), self.name)

    def _ask(self, trainer: Trainer) -> int | None:
        if self._known is None:
            self._known = (known_classes(trainer, self.num_classes),)
        return self._known[0]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the number of classes anew: the run may have another DataModule."""
        self._known = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check the first labels; on the CPU those of every batch, also of a module that is none of this package."""
        if batch_idx == 0 or pl_module.device.type == "cpu":
            self.check_batch(trainer, batch)

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
