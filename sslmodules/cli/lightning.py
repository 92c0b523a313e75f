"""``sslmodules fit``, ``validate``, ``test`` and ``predict``: LightningCLI in subclass mode."""

import copy
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from sslmodules.as_trained import read_as_trained
from sslmodules.callbacks import (
    BoxWriter,
    Collapse,
    EmbeddingProjector,
    EmbeddingWriter,
    FiniteLoss,
    Interruption,
    LastCheckpoint,
    LearningRate,
    MaskWriter,
    Milestones,
    OnlineKNN,
    OnlineLinearProbe,
    Pictures,
    PictureWriter,
    PredictionWriter,
)
from sslmodules.checkpoint_io import AtomicCheckpointIO
from sslmodules.cli.arguments import completed, going_on
from sslmodules.cli.parser import TrainerParser
from sslmodules.cli.quiet import quiet
from sslmodules.cli.results import log_results, run_results
from sslmodules.cli.run_folder import RunRecord, goes_on_in, nothing_left, open_run, save_config
from sslmodules.cli.table import files, short, table
from sslmodules.encoders import without_pretrained_weights
from sslmodules.evaluation import Evaluation, ProbeResult, probe
from sslmodules.module import SSLModule
from sslmodules.processes import Launcher, prepare_data
from sslmodules.runs import write_results
from sslmodules.signals import Interrupted

STAGES = 6  # of an encoder, in the table


class CLI(LightningCLI):
    """LightningCLI with probes, pictures and checkpoints in place, and a short table at the end of ``fit``."""

    subcommand: str
    model: SSLModule
    datamodule: LightningDataModule
    trainer: Trainer
    typed: list[str]  # what follows the subcommand on the command line
    logs: bool  # whether the logger is ours
    record: RunRecord
    run_folder: Path

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make the callbacks configurable: ``--probe.learning_rate``, ``--knn.k``, ``--checkpoint.monitor``, ..."""
        parser.add_lightning_class_args(OnlineLinearProbe, "probe")
        parser.add_lightning_class_args(OnlineKNN, "knn")
        parser.add_lightning_class_args(Collapse, "collapse")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(FiniteLoss, "finite")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.link_arguments("checkpoint.dirpath", "last_checkpoint.dirpath")
        parser.add_lightning_class_args(EmbeddingWriter, "embeddings")
        parser.add_lightning_class_args(EmbeddingProjector, "projector")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(PictureWriter, "predicted")
        parser.add_lightning_class_args(MaskWriter, "masks")
        parser.add_lightning_class_args(BoxWriter, "boxes")
        parser.set_defaults({"checkpoint.filename": "best"})

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer; what a checkpoint fixes need not be typed, and its weights are not downloaded.

        Its file is read as tensors and plain values, unless ``--weights_only false`` says that its code may run.
        """
        section = self.config[self.subcommand]
        said = read_as_trained(section, self.subcommand)
        if said is not None:
            rank_zero_only(print)(said)
        if section.get("weights_only") is None:
            section["weights_only"] = True  # Lightning's own default runs the code of what it downloads
        with without_pretrained_weights() if section.get("ckpt_path") else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what the options leave out: which checkpoint is the best, logs in the run's folder, lines of progress.

        An evaluation measures by itself, and has no need of probes.
        """
        section = self.config_init[self.subcommand]
        arguments = self.config[self.subcommand]["checkpoint"].as_dict()
        best = self._best()
        if arguments["monitor"] is None and best is not None:
            section["checkpoint"] = ModelCheckpoint(**{**arguments, "monitor": best[0], "mode": best[1]})
        self.logs = section["trainer"]["logger"] in (None, True)
        if self.logs:
            kwargs["logger"] = False  # until before_fit makes the folder; the other commands need none
        in_lines = section["trainer"]["enable_progress_bar"] is None and not sys.stdout.isatty()
        if in_lines:
            kwargs["enable_progress_bar"] = False
        given = section["trainer"]["plugins"] or []
        plugins = given if isinstance(given, list) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        if self.subcommand == "fit":
            trainer.callbacks += [Interruption(), LearningRate()]  # type: ignore[attr-defined]
        Launcher.attach(trainer)
        self.record = RunRecord()
        callbacks = [*([Milestones()] if in_lines else []), self.record, *trainer.callbacks]  # type: ignore[attr-defined]
        if isinstance(self.model, Evaluation):
            probes = (OnlineLinearProbe, OnlineKNN, Collapse)
            callbacks = [c for c in callbacks if not isinstance(c, probes)]
        if best is None and arguments["monitor"] is None and arguments["filename"] == "best":
            callbacks = [c for c in callbacks if c is not section["checkpoint"]]  # the last one is saved by another
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        return trainer

    def _best(self) -> tuple[str, str] | None:
        """What tells which epoch is the best, and whether it is to be high or low; None where nothing does."""
        if isinstance(self.model, Evaluation):
            return f"val/{self.model.measure}", "max"
        if getattr(self.datamodule, "num_classes", None) is not None:
            return "probe/val_accuracy", "max"
        measure = self.model.validation_measure
        return None if measure is None else (f"val/{measure}", "min")

    def before_fit(self) -> None:
        """Look at one batch before anything is written; keep the untrained method for comparison; open the folder."""
        ckpt_path = self.config[self.subcommand]["ckpt_path"]
        left = None if ckpt_path is None else nothing_left(ckpt_path, self.trainer)
        if left is not None:
            if self.trainer.is_global_zero:
                print(left)
            sys.exit(0)
        datamodule = self.datamodule
        datamodule.trainer = self.trainer
        with torch.random.fork_rng(devices=[]):
            prepare_data(self.trainer, datamodule)
            datamodule.setup("fit")
            self.model.check_batch(next(iter(datamodule.train_dataloader())))
        validates = self._validates()
        self.untrained = copy.deepcopy(self.model) if validates and not isinstance(self.model, Evaluation) else None
        if not validates:
            # Nothing says what is best; the last is saved all the same.
            unmonitored = [c for c in self.trainer.callbacks if not _waits_for_validation(c)]  # type: ignore[attr-defined]
            self.trainer.callbacks = unmonitored  # type: ignore[attr-defined]
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._open_run(ckpt_path)

    def _open_run(self, ckpt_path: str | None) -> None:
        trainer, config = self.trainer, self.config[self.subcommand]
        goes_on = goes_on_in(ckpt_path, config["trainer"]["default_root_dir"])
        self.record.goes_on = goes_on is not None
        self.run_folder = open_run(trainer, type(self.model).__name__, goes_on, self.logs)
        if trainer.is_global_zero:
            save_config(self.run_folder, self._parser(self.subcommand).dump(config, skip_none=False))

    def after_fit(self) -> None:
        """Write and print what was reached, beside the same encoder untrained, and where the files are."""
        trainer, model = self.trainer, self.model
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if isinstance(model, Evaluation) and self._validates() and self.record.validated_step != trainer.global_step:
            trainer.validate(model, self.datamodule, verbose=False)  # the weights of the last checkpoint
        if not trainer.is_global_zero:
            return
        measured = {}
        if not isinstance(model, Evaluation):
            measured = {"last": self._probe(model), "random_initialization": self._probe(self.untrained)}
        found = run_results(self.run_folder, trainer, model, self.datamodule, measured)
        found["command"] = shlex.join(["sslmodules", self.subcommand, *self.typed])
        found["seed"] = self.config[self.subcommand]["seed_everything"]
        write_results(self.run_folder, found)
        log_results(trainer, model, found)
        if not self._validates():
            print("\nnothing is measured: there are no validation images")
        elif isinstance(model, Evaluation):
            print("\n" + "\n".join(f"val/{name:38}  {value:.4g}" for name, value in found["metrics"]["last"].items()))
        else:
            names = type(model).__name__, "the same encoder at random initialisation"
            print("\n" + table(list(zip(names, measured.values(), strict=True))))
        print(files(self.run_folder, found, self._validates()))

    def after_validate(self) -> None:
        """Print the probe and kNN of the encoder on the validation images."""
        if self.trainer.is_global_zero and not isinstance(self.model, Evaluation):
            print("\n" + table([(type(self.model).__name__, self._probe(self.model))]))

    def _probe(self, model: SSLModule | None) -> ProbeResult | None:
        if model is None or not self._validates():
            return None
        model.to(self.trainer.strategy.root_device)  # Lightning has moved it to the CPU
        trainer, self.datamodule.trainer = self.datamodule.trainer, None  # with one, a loader has this process's share
        train, val = self.datamodule.train_dataloader(), self.datamodule.val_dataloader()
        self.datamodule.trainer = trainer
        val = val[0] if isinstance(val, (list, tuple)) else val
        return probe(model, train, val, stages=STAGES if model.specialised else 0, few=True)

    def _validates(self) -> bool:
        return self.trainer.limit_val_batches != 0 and bool(self.datamodule.val_dataloader())

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Build the parser of this command alone; that of the Trainer's others takes its time."""
        return {TrainerParser.command: super().subcommands()[TrainerParser.command]}

    def _run_subcommand(self, subcommand: str) -> None:
        """Say where the checkpoint is, whatever is interrupted: the checks before training, or the probes behind it."""
        try:
            super()._run_subcommand(subcommand)
        except Interrupted as end:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Interruption):
                    callback.report(self.trainer, end)
            if end.checkpoint and self.trainer.is_global_zero:
                print(f"to go on          {going_on(subcommand, self.typed, short(end.checkpoint))}", flush=True)
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Keep no predictions in memory: the callbacks write them."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | {"return_predictions": False} if subcommand == "predict" else kwargs

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is: the model of a checkpoint was filled in before parsing."""


def run(name: str, args: list[str]) -> None:
    """Run ``sslmodules fit``, ``validate``, ``test`` or ``predict``."""
    quiet(name)
    TrainerParser.command = name
    TrainerParser.show_all = "all" in args and args[args.index("all") - 1] in ("-h", "--help")
    complete = [name, *completed(name, [a for a in args if not (TrainerParser.show_all and a == "all")])]
    from_shell = sys.argv[1:] == [name, *args]
    if from_shell:
        sys.argv[1:] = complete  # Lightning starts the processes of other devices with these
    CLI.typed = args
    CLI(
        SSLModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # predict writes what it was asked for and no logs
        trainer_defaults={"max_epochs": 100, "log_every_n_steps": 10}
        | ({"logger": False} if name == "predict" else {}),
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_class=TrainerParser,
        save_config_callback=None,  # it is written into the folder of the run, before the run
        args=None if from_shell else complete,
    )


def _waits_for_validation(callback: Callback) -> bool:
    return isinstance(callback, ModelCheckpoint) and "val" in (callback.monitor or "")
