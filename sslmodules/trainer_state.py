"""What is read from the inside of Lightning's loops."""

from lightning.pytorch import Trainer


def gradients_pending(trainer: Trainer) -> bool:
    """Return whether gradients of some batches wait for others before the optimizer steps.

    A checkpoint that is written then is not exact: gradients are no part of it.
    """
    return trainer.fit_loop._should_accumulate()
