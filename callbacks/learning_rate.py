"""The learning rate of a run, as one curve."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class LearningRate(Callback):
    """Log ``monitor/learning_rate``, one value an optimizer however many groups of parameters it has.

    Lightning's LearningRateMonitor makes a chart of every group: of every layer where rates differ by layer, and of
    every classifier of a sweep. Of further optimizers the name has a number behind it.

    >>> trainer = Trainer(callbacks=[LearningRate()], logger=False)
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the rate of the step to come."""
        for number, optimizer in enumerate(trainer.optimizers, 1):
            name = "monitor/learning_rate" if number == 1 else f"monitor/learning_rate_{number}"
            pl_module.log(name, base_rate(optimizer))


def base_rate(optimizer: Optimizer) -> float:
    """Return the rate of which those of all groups are multiples, by ``"lr_scale"``; of a sweep the largest.

    >>> from torch import nn, optim
    >>> groups = [{"params": nn.Linear(2, 2).parameters(), "lr": 0.1 * s, "lr_scale": s} for s in (0.5, 1.0)]
    >>> base_rate(optim.SGD(groups))
    0.1
    """
    return max(float(g["lr"]) / g["lr_scale"] if g.get("lr_scale") else float(g["lr"]) for g in optimizer.param_groups)
