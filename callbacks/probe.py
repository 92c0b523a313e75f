"""A linear classifier that is trained beside the method and never touches it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.callbacks.features import Labeled, Reads, labeled_features
from sslmodules.callbacks.held_out import HeldOutAccuracy, correct_and_known
from sslmodules.distributed import gather


class OnlineLinearProbe(HeldOutAccuracy):
    """Train a linear classifier on detached features during pretraining; log ``probe/val_accuracy``.

    The probe has its own optimizer and stands outside the loss: the encoder's weights are the same to the bit with and
    without it. It takes the features that the step has computed, or runs the module on the batch's labeled images, and
    attaches to any LightningModule whose ``forward`` gives (B, D). Without labels it does nothing and says so.
    Under DDP every rank trains the same classifier on the features of all.

    Args:
        num_classes: None takes ``num_classes`` of the DataModule.
        reads: ``"features"``, the representation h; ``"projections"``, what comes out of the projector; or the number
            of a stage of the encoder, whose map is averaged (one more forward pass a step, in eval mode).
        learning_rate: of Adam.
        weight_decay: of the classifier's weights.
        name: prefix of the logged metrics; two probes on one Trainer need two names.

    Raises:
        ValueError: the number of classes is unknown, or a label is no class.

    >>> probes = [OnlineLinearProbe(10), OnlineLinearProbe(10, reads="projections", name="probe_z")]
    >>> trainer = Trainer(callbacks=probes, logger=False)
    """

    def __init__(
        self,
        num_classes: int | None = None,
        reads: Reads = "features",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        name: str = "probe",
    ) -> None:
        self.num_classes = num_classes
        self.reads = reads
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.name = name
        self.head: nn.Sequential | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._pending: dict[str, Any] | None = None
        self._unlabeled = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take one step of the classifier."""
        labeled = labeled_features(trainer, pl_module, outputs, batch, self.reads)
        if labeled is None:
            if not self._unlabeled:
                rank_zero_warn(f"{self.name}: the training batches have no labels, so there is nothing to probe with")
            self._unlabeled = True
            return
        with torch.no_grad():
            features, labels = gather(labeled.features), gather(labeled.labels)
        if len(features) < 2:  # batch norm needs two
            return
        if self.head is None:
            self._build(trainer, features)
        assert self.head is not None
        assert self.optimizer is not None
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            logits = self.head.train()(features)  # (B, classes)
            loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / (labels >= 0).sum().clamp_min(1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        correct, known = correct_and_known(logits.detach(), labels)
        accuracy = (correct * known).sum() / known.sum().clamp_min(1)
        pl_module.log_dict(
            {f"{self.name}/train_loss": loss.detach(), f"{self.name}/train_accuracy": accuracy}, batch_size=len(labels)
        )

    @property
    def ready(self) -> bool:
        """Whether there is a classifier, or one from a checkpoint that waits to be built."""
        return self.head is not None or self._pending is not None

    def scores(self, trainer: Trainer, labeled: Labeled) -> Tensor:
        """Logits (B, C) in eval mode."""
        if self.head is None:
            self._build(trainer, labeled.features)
        assert self.head is not None
        with torch.autocast(labeled.features.device.type, enabled=False):
            return self.head.eval()(labeled.features)

    def state_dict(self) -> dict[str, Any]:
        """Classifier and optimizer."""
        if self.head is None or self.optimizer is None:
            return self._pending or {}
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the first features tell how long they are."""
        self.head, self.optimizer = None, None
        self._pending = state_dict or None

    def _build(self, trainer: Trainer, features: Tensor) -> None:
        classes = self.classes(trainer)
        dim = features.shape[1]
        with torch.random.fork_rng(devices=[]):  # the method's random numbers stay its own
            self.head = nn.Sequential(nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, classes))
        for p in self.head.parameters():
            nn.init.zeros_(p)
        self.head.to(features.device)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        if self._pending is not None:
            self.head.load_state_dict(self._pending["head"])
            self.optimizer.load_state_dict(self._pending["optimizer"])
            self._pending = None
