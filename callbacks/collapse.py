"""Whether the representation still tells images apart."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslmodules.metrics import rank_me, spread


class Collapse(Callback):
    """Log the spread of the features in training and their effective rank (RankMe) on held-out images.

    ``monitor/spread`` is about 1 for features that cover the sphere and 0 for a point; ``monitor/rank_me`` counts the
    dimensions in use. A spread below ``warn_below`` on held-out images is said aloud, once.

    Args:
        max_images: held-out images, of the first rank, that the rank is computed from.
        warn_below: spread that counts as a collapse.

    >>> trainer = Trainer(callbacks=[Collapse()], logger=False)
    """

    def __init__(self, max_images: int = 2048, warn_below: float = 0.01) -> None:
        self.max_images = max_images
        self.warn_below = warn_below
        self._features: list[Tensor] = []
        self._warned = False

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the spread of this batch."""
        features = _features(outputs)
        if features is not None:
            pl_module.log("monitor/spread", spread(features), batch_size=len(features))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep features until there are enough."""
        features = _features(outputs)
        if features is not None and sum(map(len, self._features)) < self.max_images:
            self._features.append(features.float())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the effective rank; warn of a collapse."""
        if not self._features:
            return
        features = torch.cat(self._features)[: self.max_images]
        self._features = []
        pl_module.log("monitor/rank_me", rank_me(features), rank_zero_only=True)
        if not self._warned and not trainer.sanity_checking and spread(features) < self.warn_below:
            self._warned = True
            rank_zero_warn(
                f"the features have collapsed: their spread is {spread(features).item():.2g} where about 1 is healthy"
            )


def _features(outputs: Any) -> Tensor | None:
    features = outputs.get("features") if isinstance(outputs, dict) else None
    return features.detach() if isinstance(features, Tensor) and features.ndim == 2 else None
