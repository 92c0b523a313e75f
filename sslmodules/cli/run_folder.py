"""The folder of a run of ``sslmodules fit``: where its files go, and which it goes on in."""

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sslmodules.loading import read_checkpoint
from sslmodules.runs import CHECKPOINTS, CONFIG, RUNS, new_run, run_of, set_aside


class RunRecord(Callback):
    """Keep when a run began, how long it has lasted over all interruptions, and at which step it was validated last.

    Args:
        goes_on: take over what the checkpoint tells of an earlier part of the same run.
    """

    def __init__(self, goes_on: bool = False) -> None:
        self.goes_on = goes_on
        self.started = ""  # ISO 8601
        self.validated_step = -1
        self.seconds = 0.0
        self._since = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = self.started or datetime.now().astimezone().isoformat(timespec="seconds")
        self._since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note which weights were validated."""
        if not trainer.sanity_checking:
            self.validated_step = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._count()

    def _count(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now

    def state_dict(self) -> dict[str, Any]:
        """Give start and duration."""
        self._count()
        return {"started": self.started, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over start and duration where it is the same run."""
        if self.goes_on:
            self.started, self.seconds = state_dict["started"], state_dict["seconds"]


def goes_on_in(ckpt_path: str | None, root: str | None) -> Path | None:
    """Return the folder of the run that goes on; None for a new run.

    A run goes on in its folder from its last checkpoint. From any other checkpoint, or in another root that is asked
    for, it is a new run: the checkpoints that came after that one stay as they are.

    Args:
        ckpt_path: the checkpoint that training starts from.
        root: ``--trainer.default_root_dir``.
    """
    run = None if ckpt_path is None else run_of(ckpt_path)
    if run is None or Path(str(ckpt_path)).name != "last.ckpt":
        return None
    return run if root is None or Path(root).absolute() == run.parent.parent else None


def open_run(trainer: Trainer, method: str, goes_on: Path | None, logs: bool) -> Path:
    """Let logs, pictures and checkpoints of a Trainer go into the folder of a run, and return that.

    A logger of the user's own that writes into a folder keeps it, and that is the run's.

    Args:
        trainer: before ``fit``. Other ranks than the first take over its folder as soon as ``fit`` begins.
        method: name of the class.
        goes_on: folder of the run that goes on; None makes a new one.
        logs: whether TensorBoard's events go there.
    """
    loggers: Any = trainer.loggers
    if loggers and isinstance(loggers[0], (TensorBoardLogger, CSVLogger)):
        run = Path(loggers[0].log_dir).absolute()
        if trainer.is_global_zero:
            run.mkdir(parents=True, exist_ok=True)
    else:
        root = Path(trainer.default_root_dir).absolute()
        run = goes_on or (new_run(root, method) if trainer.is_global_zero else root / RUNS)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run / CHECKPOINTS)
    if logs:
        trainer.logger = TensorBoardLogger(run.parent.parent, run.parent.name, run.name, default_hp_metric=False)
    return run


def save_config(run: Path, text: str) -> None:
    """Write ``config.yaml`` in one go; what an earlier part of the run left is kept beside it.

    Args:
        run: the folder.
        text: YAML.
    """
    if (run / CONFIG).is_file():
        set_aside(run, yaml.safe_load(text))
    unfinished = run / f".{CONFIG}.{os.getpid()}.part"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(run / CONFIG)


def nothing_left(ckpt_path: str, trainer: Trainer) -> str | None:
    """Return what to say where a checkpoint is already at the end of the training that is asked for; None elsewhere."""
    checkpoint = read_checkpoint(ckpt_path)
    if "loops" not in checkpoint:  # weights alone, from which Lightning does not go on
        return None
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    steps = checkpoint["global_step"]
    for option, done, asked in (("max_epochs", epochs, trainer.max_epochs), ("max_steps", steps, trainer.max_steps)):
        if asked is not None and 0 <= asked <= done:
            unit = option.removeprefix("max_")
            return (
                f"nothing is left to train: {ckpt_path} is at the end of {done:,} {unit}, and --trainer.{option} is "
                f"{asked}; pass more to go on"
            )
    return None
