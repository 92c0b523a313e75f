"""What is read from the inside of Lightning's loops, and what is put right there."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn


def gradients_pending(trainer: Trainer) -> bool:
    """Return whether gradients of some batches wait for others before the optimizer steps.

    A checkpoint that is written then is not exact: gradients are no part of it.
    """
    return trainer.fit_loop._should_accumulate()


def epoch_ends(trainer: Trainer) -> bool:
    """Return whether the current training batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def step_ends_stage(trainer: Trainer) -> bool:
    """Return whether validation, or the end of the epoch, follows the current training batch."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return epoch_ends(trainer) or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def repeat_validation(trainer: Trainer) -> None:
    """Let a checkpoint that is written during validation begin it again, from its first batch.

    Lightning does so where a batch had been started and not finished, and leaves validation out otherwise.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def pending_batches(trainer: Trainer) -> int:
    """Count the batches whose gradients are pending, 0 outside of `fit`."""
    if trainer.state.fn != TrainerFn.FITTING or not gradients_pending(trainer):
        return 0
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches


def repair_progress(loops: dict[str, Any], accumulate_grad_batches: int = 1, pending: int = 0) -> None:
    """Rewrite the progress that a checkpoint notes, in place, so that a run goes on with what came next.

    Lightning 2.6 guesses from four counters at which hook a checkpoint was written, and each guess has a path of its
    own. After an epoch's last batch these leave counters behind that do not fit each other, and the checkpoints of the
    resumed run are then taken for others: it trains an epoch again or leaves one out. Here every checkpoint becomes one
    of three: within an epoch, as if written by ``on_train_batch_end``; between two epochs, with nothing begun; or in
    validation, which is begun again, see `repeat_validation`. A validation that was due after the last batch of a
    checkpoint of the first two kinds is not made up for.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]``.
        accumulate_grad_batches: of the Trainer.
        pending: batches whose gradients were accumulated when it was written. They are trained on again, if the
            loaders' state tells their place in the data.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    current, total = batches["current"], batches["total"]
    if not total["ready"] or current["ready"] != current["processed"]:  # before the first batch, or in the midst of one
        return
    in_epoch_loop = epochs["current"]["processed"] < epochs["current"]["started"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    repeats = in_epoch_loop and not pending and validation["total"]["processed"] == validation["total"]["started"] - 1
    if pending:
        _step_back(loops, pending)

    within = current["ready"] > 0 and not batches["is_last_batch"]
    done = epochs["current"]["started"] - (not batches["is_last_batch"] or repeats)
    earlier = epochs["total"]["started"] - epochs["current"]["started"]
    for counts, finished in ((epochs["current"], done), (epochs["total"], earlier + done)):
        begun = finished + (within or repeats)
        counts.update(ready=begun, started=begun, processed=finished, completed=finished)
    for counts in (current, total):
        completed = counts["ready"] - (within and not repeats)
        counts.update(started=counts["ready"], processed=counts["ready"], completed=completed)
    if repeats:
        return
    for counts in (validation["current"], validation["total"]):
        counts.update(started=counts["ready"], processed=counts["ready"], completed=counts["ready"])
    # Steps as loggers count them: those of the last batch are added after validation, or when a run goes on within an
    # epoch.
    stepped = loops["epoch_loop.state_dict"]
    stepped["_batches_that_stepped"] += in_epoch_loop and not pending
    stepped["_batches_that_stepped"] -= within and current["ready"] % accumulate_grad_batches == 0


def _step_back(loops: dict[str, Any], pending: int) -> None:
    batches = loops["epoch_loop.batch_progress"]
    loaders = loops["state_dict"].get("combined_loader", [])
    if loaders and all("position" in state for state in loaders):
        for state in loaders:
            state["position"] -= state["position"] // batches["current"]["ready"] * pending
        for counts in (batches["current"], batches["total"]):
            counts["ready"] -= pending
    rank_zero_warn(
        f"the checkpoint was written in the middle of an accumulation: the gradients of {pending} batches are not in "
        "it. With loaders of sslmodules.datamodules these are trained on again, otherwise they are left out; use "
        "LastCheckpoint for runs that go on exactly"
    )


def begin_resumed_run(trainer: Trainer) -> None:
    """Finish what `repair_progress` began: call it in ``on_train_start`` of a run that goes on from a checkpoint.

    With ``max_steps``, Lightning restarts an epoch even from a checkpoint between two of them; here it begins the next
    one. And a `ModelCheckpoint` that saves by steps takes the file that the run goes on from for its own, or it would
    write that step anew after the first batch, where gradients may be pending.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    if epochs.ready == epochs.processed:
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # the setter of the base, which obeys
    for callback in trainer.checkpoint_callbacks if loop.is_resuming else ():
        if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
            callback._last_global_step_saved = trainer.global_step
