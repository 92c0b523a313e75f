"""A run that diverges ends at once: at the first loss that is not finite, and before such weights reach a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslmodules.distributed import all_reduced, gather_objects, world_size

NEVER = 2**62
NAMED_FILES = 3  # of a batch, in the sentence; the error holds all


class NotFiniteError(ValueError):
    """A loss or a weight is NaN or infinite.

    Args:
        sentence: where it happened and what to do.
        files: all files of that batch, where the loader knows them.

    >>> NotFiniteError("the loss is nan at batch 1", ("a.png", "b.png")).files
    ('a.png', 'b.png')
    """

    def __init__(self, sentence: str, files: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.files = files


class Step(NamedTuple):
    """What is remembered of a batch until its loss is read."""

    loss: Tensor
    terms: dict[str, Tensor]  # scalar metrics
    number: int  # batches of the run before this one
    epoch: int
    batch_idx: int
    global_step: int  # optimizer steps done
    place: dict[str, int] | None  # state of the loader, which then finds the batch's files


class FiniteLoss(Callback):
    """Stop a run whose loss is NaN or infinite, and let no checkpoint be written of weights that are.

    Losses stay on the device and are read every ``Trainer(log_every_n_steps=...)`` batches, where logging waits for the
    device anyway, at the end of each epoch and before every checkpoint; on a single CPU after each batch. All processes
    read at the same moments and stop together. Of independent classifiers (``"losses"`` (R,) in what the step returns)
    one that is finite is enough.

    Every method of this package brings one along; ``Trainer(callbacks=[FiniteLoss(stop=False)])`` takes its place.

    Args:
        stop: raise the error; False warns once and goes on, and checkpoints are written of whatever weights there are.

    Raises:
        NotFiniteError: epoch, batch and step of the first loss that is not finite, the terms of the loss that are not
            finite either, the batch's files where the loader knows them, and the last checkpoint from before.

    >>> trainer = Trainer(callbacks=[FiniteLoss(stop=False)], logger=False)
    """

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self._steps: list[Step] = []
        self._saved_at = -1  # count of batches at the latest save, whose weights have been looked at
        self._independent = False
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing remembered."""
        self._steps, self._saved_at, self._independent, self._warned = [], -1, False, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the loss; read all that are remembered when it is time."""
        values = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        loss = values.get("losses", values.get("loss"))
        count = trainer.fit_loop.epoch_loop.total_batch_idx
        if isinstance(loss, Tensor):
            self._independent = loss.numel() > 1
            terms = {name: value for name, value in values.items() if name != "loss" and _is_scalar(value)}
            loader: Any = trainer.train_dataloader
            place = loader.state_dict() if hasattr(loader, "files_of") else None
            self._steps.append(Step(loss, terms, count, trainer.current_epoch, batch_idx, trainer.global_step, place))
        if self.reads_at_once(pl_module) or (count + 1) % (trainer.log_every_n_steps or 50) == 0:  # type: ignore[attr-defined]
            self._read(trainer)

    def reads_at_once(self, pl_module: LightningModule) -> bool:
        """Whether reading a loss waits neither for a device nor for another process."""
        return pl_module.device.type == "cpu" and world_size() == 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses that are left."""
        self._read(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at losses and weights; on all processes, as saving is."""
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a :class:`NotFiniteError` where the losses so far, or the weights, are not finite."""
        count = trainer.fit_loop.epoch_loop.total_batch_idx
        if not self.stop or trainer.state.fn != "fit" or count == self._saved_at:
            return
        self._read(trainer)
        # A step may ruin the weights without a loss that shows it. One of several classifiers may have diverged alone.
        bad = None if self._independent else first_not_finite(pl_module)
        found = [name for name in gather_objects(bad) if name is not None]
        if found:
            epoch, step = trainer.current_epoch, trainer.global_step
            raise NotFiniteError(
                f"the weights are not finite after optimizer step {step} in epoch {epoch} ({found[0]}), although all "
                f"losses so far were; no checkpoint was written of them. {_advice(trainer)}"
            )
        self._saved_at = count

    def _read(self, trainer: Trainer) -> None:
        steps, self._steps = self._steps, []
        bad = None
        if steps:
            finite = torch.stack([step.loss.detach().isfinite().any() for step in steps]).tolist()
            bad = next((step for step, fine in zip(steps, finite, strict=True) if not fine), None)
        first = -NEVER if bad is None else -bad.number
        if world_size() > 1:
            first = int(all_reduced(torch.tensor(first, device=trainer.strategy.root_device), "max"))
        if first == -NEVER:
            return
        # The same sentence on all processes, of one that met it first.
        own = None if bad is None or bad.number != -first else _described(trainer, bad)
        sentence, files = next(found for found in gather_objects(own) if found is not None)
        if self.stop:
            raise NotFiniteError(f"{sentence}. {_advice(trainer)}", files)
        if not self._warned:
            rank_zero_warn(f"{sentence}; the run goes on, since FiniteLoss was told not to stop")
            self._warned = True


def first_not_finite(module: torch.nn.Module) -> str | None:
    """Name of the first parameter that holds a NaN or an infinite number, or None.

    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.constant_(layer.bias, torch.nan)
    >>> first_not_finite(layer)
    'bias'
    """
    named = {name: p.detach() for name, p in module.named_parameters() if p.numel()}
    if not named:
        return None
    largest = torch._foreach_norm(list(named.values()), ord=torch.inf)  # a few kernels for all
    finite = torch.stack([x.float() for x in largest]).isfinite().tolist()
    return next((name for name, fine in zip(named, finite, strict=True) if not fine), None)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()


def _described(trainer: Trainer, step: Step) -> tuple[str, tuple[str, ...]]:
    """Where and in which terms the loss is not finite, and the files of the batch."""
    terms = [name for name, value in step.terms.items() if not value.isfinite().item()]
    process = f", process {trainer.global_rank}" if trainer.world_size > 1 else ""
    also = f", as {'is its term' if len(terms) == 1 else 'are its terms'} {', '.join(terms)}" if terms else ""
    loader: Any = trainer.train_dataloader
    files = tuple(loader.files_of(step.place)) if step.place is not None else ()
    rest = f" and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else ""
    holds = f"its files are {', '.join(files[:NAMED_FILES])}{rest}" if files else "the loader does not know its files"
    return (
        f"the loss is {step.loss.flatten()[0].item()} at batch {step.batch_idx} of epoch {step.epoch} (optimizer step "
        f"{step.global_step}{process}){also}; {holds}",
        files,
    )


def _advice(trainer: Trainer) -> str:
    return (
        f"{last_good(trainer)} with a lower learning rate, or pass FiniteLoss(stop=False) (--finite.stop false) to "
        "ignore it"
    )


def last_good(trainer: Trainer) -> str:
    """Say from which file of this run to go on: the latest, since none is written of weights that are not finite."""
    written = {getattr(callback, "_last_checkpoint_saved", "") for callback in trainer.checkpoint_callbacks}
    existing = [Path(path) for path in written if path and Path(path).exists()]
    if existing:
        return f"The last good checkpoint is {max(existing, key=lambda path: path.stat().st_mtime)}; go on from there"
    since = f" since the run was resumed from {trainer.ckpt_path}" if trainer.ckpt_path else ""
    return f"No checkpoint was written{since}; start again"
