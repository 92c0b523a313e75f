"""The command ``sslmodules fit|validate|test|predict``, on LightningCLI in subclass mode, and those beside it."""

import copy
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import sslmodules
from sslmodules import callbacks, configs, datamodules
from sslmodules.callbacks import (
    Collapse,
    EmbeddingProjector,
    EmbeddingWriter,
    OnlineKNN,
    OnlineLinearProbe,
    Pictures,
    PictureWriter,
)
from sslmodules.evaluation import Evaluation, ProbeResult, probe
from sslmodules.evaluation.attention_command import attention
from sslmodules.evaluation.evaluate_command import evaluate_command
from sslmodules.evaluation.propagate_command import propagate
from sslmodules.loading import read_checkpoint, subclasses
from sslmodules.module import SSLModule

DEFAULT_CONFIG = "simclr_digits.yaml"
STAGES = 6  # of an encoder, in the table
# LightningCLI looks for its subcommands on the Trainer, which these do not need; they have parsers of their own.
COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "attention": attention,
    "evaluate": evaluate_command,
    "propagate": propagate,
}


class CLI(LightningCLI):
    """LightningCLI with probes, pictures and checkpoints in place, and a short table at the end of ``fit``."""

    subcommand: str
    model: SSLModule
    datamodule: LightningDataModule
    trainer: Trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make the callbacks configurable: ``--probe.learning_rate``, ``--knn.k``, ``--checkpoint.monitor``, ..."""
        parser.add_lightning_class_args(OnlineLinearProbe, "probe")
        parser.add_lightning_class_args(OnlineKNN, "knn")
        parser.add_lightning_class_args(Collapse, "collapse")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        # Beside the best: with a monitor, Lightning's own save_last writes none where the latest is not the best.
        parser.add_lightning_class_args(ModelCheckpoint, "last_checkpoint")
        parser.link_arguments("checkpoint.dirpath", "last_checkpoint.dirpath")
        parser.add_lightning_class_args(LearningRateMonitor, "learning_rate_monitor")
        parser.add_lightning_class_args(EmbeddingWriter, "embeddings")
        parser.add_lightning_class_args(EmbeddingProjector, "projector")
        parser.add_lightning_class_args(PictureWriter, "predicted")
        parser.set_defaults({"checkpoint.filename": "best"})
        parser.set_defaults({"last_checkpoint.filename": "last", "last_checkpoint.enable_version_counter": False})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Say what the best checkpoint is where ``--checkpoint.monitor`` does not: what is measured, else the loss's.

        An evaluation measures by itself, and has no need of probes.
        """
        section = self.config_init[self.subcommand]
        arguments = self.config[self.subcommand]["checkpoint"].as_dict()
        if arguments["monitor"] is None:
            labeled = getattr(self.datamodule, "num_classes", None) is not None
            best = ("probe/val_accuracy", "max") if labeled else ("val/loss", "min")
            if isinstance(self.model, Evaluation):
                best = (f"val/{self.model.measure}", "max")
            section["checkpoint"] = ModelCheckpoint(**{**arguments, "monitor": best[0], "mode": best[1]})
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(self.model, Evaluation):
            probes = (OnlineLinearProbe, OnlineKNN, Collapse)
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, probes)]  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Look at one batch before anything is written; keep the untrained method for comparison."""
        datamodule = self.datamodule
        datamodule.trainer = self.trainer
        with torch.random.fork_rng(devices=[]):
            datamodule.prepare_data()
            datamodule.setup("fit")
            self.model.check_batch(next(iter(datamodule.train_dataloader())))
        validates = self._validates()
        self.untrained = copy.deepcopy(self.model) if validates and not isinstance(self.model, Evaluation) else None
        if not validates:
            # Nothing says what is best; the last is saved all the same.
            unmonitored = [c for c in self.trainer.callbacks if not _waits_for_validation(c)]  # type: ignore[attr-defined]
            self.trainer.callbacks = unmonitored  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Print the probe and kNN of this encoder beside the same encoder untrained, and where the files are."""
        if not self.trainer.is_global_zero or getattr(self.trainer, "fast_dev_run", False):
            return
        if isinstance(self.model, Evaluation):
            measured = {k: v for k, v in self.trainer.callback_metrics.items() if k.startswith("val/")}
            print("\n" + "\n".join(f"{name:42}  {value.item():.4g}" for name, value in measured.items()))
        else:
            names = type(self.model).__name__, "the same encoder at random initialisation"
            both = self.model, self.untrained
            print("\n" + _table([(name, self._probe(model)) for name, model in zip(names, both, strict=True)]))
        for checkpoint in self.trainer.checkpoint_callbacks:
            path = getattr(checkpoint, "best_model_path", "")  # the latest, where nothing is monitored
            if path:
                which = "last" if getattr(checkpoint, "monitor", None) is None else "best"
                print(f"{which} checkpoint   {_short(path)}")
        if self.trainer.log_dir:
            print(f"logs, pictures    {_short(self.trainer.log_dir)}")

    def after_validate(self) -> None:
        """Print the probe and kNN of the encoder on the validation images."""
        if self.trainer.is_global_zero and not isinstance(self.model, Evaluation):
            print("\n" + _table([(type(self.model).__name__, self._probe(self.model))]))

    def _probe(self, model: SSLModule | None) -> ProbeResult | None:
        if model is None or not self._validates():
            return None
        model.to(self.trainer.strategy.root_device)  # Lightning has moved it to the CPU
        loaders = self.datamodule.train_dataloader(), self.datamodule.val_dataloader()
        return probe(model, *loaders, stages=STAGES if model.specialised else 0)

    def _validates(self) -> bool:
        return self.trainer.limit_val_batches != 0 and bool(self.datamodule.val_dataloader())

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is: the model of a checkpoint was filled in before parsing."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; ``sslmodules fit`` alone runs SimCLR on scikit-learn's digits.

    Args:
        args: what follows the command's name; None takes ``sys.argv``.
    """
    try:
        given = sys.argv[1:] if args is None else args
        if given and given[0] in COMMANDS:
            return COMMANDS[given[0]](given[1:])
        if args is None:
            sys.argv[1:] = _completed(sys.argv[1:])
        CLI(
            SSLModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults={"max_epochs": 100, "log_every_n_steps": 10},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"epilog": f"Besides: sslmodules {' or '.join(COMMANDS)}, each with --help."},
            save_config_kwargs={"overwrite": True},
            args=None if args is None else _completed(args),
        )
    except Exception as error:
        sentence = _own_sentence(error)
        if sentence is None:
            raise
        sys.exit(f"sslmodules: error: {sentence}")


def _completed(args: list[str]) -> list[str]:
    """Fill in what the command line leaves out: the default recipe, or the model that a checkpoint holds."""
    given = dict(zip(args, [*args[1:], ""], strict=False)) | dict(a.split("=", 1) for a in args if "=" in a)
    for option, base in (("--model", SSLModule), ("--data", LightningDataModule)):
        names = [c.__name__ for c in subclasses(base)]
        value = given.get(option, "")
        if value.isidentifier() and value not in names:
            near = difflib.get_close_matches(value, names, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(names))}"
            raise ValueError(f"{option} {value}: there is no such class{hint}")
    if not args or {"--config", "-c", "--model"} & given.keys():
        return args
    if args[0] == "fit" and "--data" not in given and "--ckpt_path" not in given:
        return ["fit", "--config", str(config(DEFAULT_CONFIG)), *args[1:]]
    if "--ckpt_path" in given:
        checkpoint = read_checkpoint(given["--ckpt_path"])
        arguments = {k: v for k, v in checkpoint["hyper_parameters"].items() if not k.startswith("_")}
        model = {"class_path": checkpoint["sslmodules"]["class_path"], "init_args": arguments}
        return [args[0], "--model", json.dumps(model), *args[1:]]
    return args


def _own_sentence(error: BaseException | None) -> str | None:
    """What an error says that this package raised about its input; None for any other error."""
    folders = tuple(str(Path(m.__path__[0]).resolve()) for m in (sslmodules, callbacks, datamodules))
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        ours = trace is not None and trace.tb_frame.f_code.co_filename.startswith(folders)
        if ours and isinstance(error, (ValueError, FileNotFoundError, ImportError)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def config(name: str) -> Path:
    """Path of a recipe that comes with the package."""
    return Path(next(iter(configs.__path__))) / name


def _table(rows: list[tuple[str, ProbeResult | None]]) -> str:
    first = rows[0][1]
    if first is None:
        return "no labels to probe with: pass a labeled DataModule, or --data.labels true for ImageFolder"
    known = [(name, result) for name, result in rows if result is not None]
    lines = [f"{'':42}  linear probe   kNN"]
    lines += [f"{name:42}  {r.linear:11.1%}  {r.knn:6.1%}" for name, r in known]
    if first.stages:
        lines.append(f"{'linear probe of each stage':42}" + "".join(f"{f'stage {s}':>10}" for s in first.stages))
        lines += [f"{name:42}" + "".join(f"{a:10.1%}" for a in r.stages.values()) for name, r in known]
    lines.append(f"on {first.test_images:,} held-out images, {first.train_images:,} to fit on")
    return "\n".join(lines)


def _waits_for_validation(callback: Callback) -> bool:
    return isinstance(callback, ModelCheckpoint) and "val" in (callback.monitor or "")


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
