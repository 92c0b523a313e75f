"""What is read from the inside of Lightning's loops."""

from lightning.pytorch import Trainer


def gradients_pending(trainer: Trainer) -> bool:
    """Return whether gradients of some batches wait for others before the optimizer steps.

    A checkpoint that is written then is not exact: gradients are no part of it.
    """
    return trainer.fit_loop._should_accumulate()


def step_ends_stage(trainer: Trainer) -> bool:
    """Return whether validation, or the end of the epoch, follows the current training batch."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._num_ready_batches_reached() or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def repeat_validation(trainer: Trainer) -> None:
    """Let a checkpoint that is written during validation begin it again, from its first batch.

    Lightning does so where a batch had been started and not finished, and leaves validation out otherwise.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()
