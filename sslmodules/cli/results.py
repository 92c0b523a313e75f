"""What a run of ``sslmodules fit`` reached, for ``results.json`` and TensorBoard."""

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

import sslmodules
from sslmodules.cli.run_folder import RunRecord
from sslmodules.evaluation import Evaluation, ProbeResult
from sslmodules.hyperparameters import class_path
from sslmodules.loading import read_checkpoint
from sslmodules.module import SSLModule


def run_results(
    run: Path,
    trainer: Trainer,
    model: SSLModule,
    datamodule: LightningDataModule,
    measured: Mapping[str, ProbeResult | None],
) -> dict[str, Any]:
    """Describe a run that has ended: what was trained, on what, how long, and what its checkpoints reached.

    Args:
        run: folder of the run; checkpoints in it are named relative to it.
        trainer: after ``fit``, with a :class:`~sslmodules.cli.run_folder.RunRecord`.
        model: as it is in the last checkpoint.
        datamodule: that it was trained on.
        measured: probes of ``"last"``, the weights of the last checkpoint, and ``"random_initialization"``, of the
            same method before training; empty for an evaluation, which measures by itself.
    """
    record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]
    evaluates = isinstance(model, Evaluation)
    checkpoints, best = {}, {}
    for callback in trainer.checkpoint_callbacks:
        path, monitor = getattr(callback, "best_model_path", ""), getattr(callback, "monitor", None)
        score = getattr(callback, "best_model_score", None)
        if not Path(path).is_file() or (monitor is not None and score is None):  # of the run that this one began from
            continue
        checkpoint = read_checkpoint(path)
        epoch = min(checkpoint["epoch"] + 1, max(trainer.current_epoch, 1))  # the next is counted at the end of a fit
        entry = {"path": path_from(run, path), "epoch": epoch, "step": checkpoint["global_step"]}
        if monitor is not None:
            value = float(score)  # type: ignore[arg-type]
            entry |= {"monitor": monitor, "mode": callback.mode, "value": value}  # type: ignore[attr-defined]
            best = {monitor.removeprefix("val/") if evaluates else monitor: value}
        checkpoints["last" if monitor is None else "best"] = entry
    metrics = {name: _values(result) for name, result in measured.items()}
    if evaluates:
        validated = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        metrics["last"] = {name.removeprefix("val/"): value for name, value in validated.items()}
    probed = measured.get("last")
    arguments: Any = model.held["arguments"] if isinstance(model, Evaluation) else model.hparams
    encoder = arguments.get("encoder")
    root = getattr(datamodule, "root", None) or datamodule.hparams.get("root")
    return {
        "method": type(model).__name__,
        "class_path": class_path(type(model)),
        "encoder": {
            "name": encoder if isinstance(encoder, str) else type(model.encoder).__name__,
            "arguments": dict(arguments.get("encoder_args") or {}),
            "parameters": sum(p.numel() for p in model.encoder.parameters()),
        },
        "data": {"class": type(datamodule).__name__, "root": None if root is None else str(root)},
        "images": {} if probed is None else {"train": probed.train_images, "validation": probed.test_images},
        "started": record.started,
        "duration": round(record.seconds, 1),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "versions": {
            "sslmodules": sslmodules.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
        "hardware": _hardware(trainer),
        "checkpoints": checkpoints,
        "measure": model.measure if isinstance(model, Evaluation) else None,
        "metrics": {name: _finite(found) for name, found in {"last": {}, **metrics, "best": best}.items()},
    }


def log_results(trainer: Trainer, model: SSLModule, results: Mapping[str, Any]) -> None:
    """Write what a run reached to TensorBoard: scalars ``results/...``, and the same beside the hyperparameters."""
    scalars = {f"results/{name}": value for name, value in results["metrics"]["last"].items() if value is not None}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and scalars:
            given = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
            logger.log_hyperparams(given, scalars, step=trainer.global_step)
            logger.finalize("success")


def path_from(run: Path, path: str) -> str:
    """Return a path as seen from the folder of a run, where it lies in it; else the absolute path."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(run) if absolute.is_relative_to(run) else absolute)


def _values(result: ProbeResult | None) -> dict[str, float]:
    if result is None:
        return {}
    found = {"linear_probe": result.linear, "knn": result.knn}
    found |= {f"linear_probe_{round(100 * share)}_percent": value for share, (_, value) in result.few.items()}
    return found | {f"linear_probe_stage_{number}": value for number, value in result.stages.items()}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN


def _hardware(trainer: Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    return {
        "accelerator": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "devices": trainer.world_size,
        "nodes": trainer.num_nodes,
        "cpu_cores": os.cpu_count(),
        "precision": str(trainer.precision),
    }
