"""Stop a run wherever it has written a file, go on from there, and compare the end with that of a run never stopped.

A kill leaves what was written before it and nothing else, so each file that a run writes stands for all kills between
it and the next one. A pair of kills goes on from a file of the whole run, and then from a file that this run writes.

    nice python tests/support/kills.py              # every file of every case, and pairs of them
    nice python tests/support/kills.py --sigkill 20 # that many by SIGKILL, in processes of their own
"""

import argparse
import logging
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from method_list import METHODS, kind
from runs import EXAMPLES, trainer
from torch import Tensor

from sslmodules.callbacks import LastCheckpoint, OnlineKNN, OnlineLinearProbe
from sslmodules.checkpoint_io import AtomicCheckpointIO
from sslmodules.datamodules import LabeledDataModule

# 4 batches an epoch, 3 epochs. The keys of a case: a method, what the Trainer is told, and which callback writes.
EPOCHS = {"max_epochs": 3}
STEPS = {"max_steps": 10, "max_epochs": -1}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "SimCLR": ("SimCLR", EPOCHS, "last"),
    "SimCLR, steps": ("SimCLR", STEPS, "last"),
    "SimCLR, validation every second epoch": ("SimCLR", {**EPOCHS, "check_val_every_n_epoch": 2}, "last"),
    "SimCLR, no validation": ("SimCLR", {**EPOCHS, "limit_val_batches": 0}, "last"),
    "SimCLR, no validation, steps": ("SimCLR", {**STEPS, "limit_val_batches": 0}, "last"),
    "SimCLR, validation in the epoch": ("SimCLR", {**EPOCHS, "val_check_interval": 2}, "all"),
    "SimCLR, ModelCheckpoint": ("SimCLR", EPOCHS, "plain"),
    "MoCo, accumulation": ("MoCo", {**EPOCHS, "accumulate_grad_batches": 2}, "last"),
    "MoCo, accumulation, steps": ("MoCo", {"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, "last"),
    "MoCo, accumulation that leaves a rest": ("MoCo", {**EPOCHS, "accumulate_grad_batches": 3}, "all"),
    "MoCo, accumulation, ModelCheckpoint": ("MoCo", {**EPOCHS, "accumulate_grad_batches": 2}, "plain"),
    "DINO": ("DINO", EPOCHS, "last"),
    "DINO, steps": ("DINO", STEPS, "all"),
    "MAE": ("MAE", EPOCHS, "last"),
    "MAE, accumulation": ("MAE", {**EPOCHS, "accumulate_grad_batches": 2}, "all"),
    "CPC": ("CPC.audio", EPOCHS, "last"),
    "CPC, steps": ("CPC.audio", STEPS, "last"),
}


class Keep(AtomicCheckpointIO):
    """Keep every file that is written, numbered; end the process after one of them where that is asked for."""

    def __init__(self, folder: Path, killed_after: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.killed_after = killed_after
        self.files: list[Path] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.files.append(self.folder / f"{len(self.files):02d}.ckpt")
        shutil.copy(path, self.files[-1])
        if len(self.files) == self.killed_after:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    case: str, folder: Path, workers: int = 0, ckpt_path: Path | None = None, killed_after: int | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Train to the end; returns what there is then, and the files that were written, in their order."""
    name, kwargs, writes = CASES[case]
    seed_everything(0 if ckpt_path is None else 99, verbose=False)
    folder.mkdir(parents=True)
    examples = EXAMPLES[kind(name)]
    data = LabeledDataModule(examples(36), examples(8, seed=1), batch_size=8, seed=3, num_workers=workers)
    last = LastCheckpoint(folder / "last", timedelta(0))
    steps = ModelCheckpoint(folder / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    best = ModelCheckpoint(folder / "best", "best", monitor="val/loss", save_top_k=-1, save_on_train_epoch_end=False)
    writers = {"last": [last], "plain": [steps], "all": [last, steps, best]}[writes]
    keep = Keep(folder, killed_after)
    probes = [OnlineLinearProbe(4), OnlineKNN(4, bank_size=20)]
    trained = trainer(folder, plugins=[keep], callbacks=[*probes, *writers], enable_checkpointing=True, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained.fit(METHODS[name](), datamodule=data, ckpt_path=ckpt_path)
    end = trained._checkpoint_connector.dump_checkpoint(weights_only=False)
    end["batches"] = trained.fit_loop.epoch_loop.batch_progress.total.ready
    stepped = trained.fit_loop.epoch_loop._batches_that_stepped
    end["step of the loggers"] = stepped if keep.files else trained.global_step  # set right when training goes on
    # Lightning counts an epoch that max_steps cuts short as a whole one, though not where nothing is left to train.
    for part in ("epoch", "loops", "hyper_parameters", "LabeledDataModule"):
        end.pop(part, None)
    end["callbacks"] = {key: state for key, state in end["callbacks"].items() if "Checkpoint" not in key}
    return end, keep.files


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Places where two nested values differ, tensors by a single bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}/{i}")
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        if not torch.equal(a, b):
            yield where
    elif a != b:
        yield f"{where}: {a} != {b}" if not isinstance(a, dict | list) else where


def kills(case: str, folder: Path, workers: int, pairs: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Go on from every file of a run, and from files of the runs that go on; yields names and what differs at the end.

    Args:
        case: one of CASES.
        folder: an empty one.
        workers: of the loaders.
        pairs: how many pairs, chosen at random but always among them those around the ends of epochs; None for all.
    """
    whole, files = run(case, folder / "whole", workers)
    seconds = []
    for i, file in enumerate(files):
        end, more = run(case, folder / f"{i}", workers, file)
        yield f"{case}, {workers} workers: after file {i}", list(differences(whole, end))
        seconds += [(i, j, second) for j, second in enumerate(more)]
    random.Random(0).shuffle(seconds)
    seconds.sort(key=lambda pair: pair[1] > 1)  # soon after the first
    for i, j, second in seconds[:pairs]:
        end, _ = run(case, folder / f"{i}-{j}", workers, second)
        yield f"{case}, {workers} workers: after file {i}, then after {j} more", list(differences(whole, end))


def sigkill(case: str, folder: Path, workers: int, after: int) -> list[str]:
    """Go on after a real SIGKILL in a process of its own; returns what differs from the run never stopped."""
    whole, _ = run(case, folder / "whole", workers)
    pid = os.fork()
    if pid == 0:
        run(case, folder / "killed", workers, killed_after=after)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != -signal.SIGKILL:
        return [f"the process ended with {status}"]
    end, _ = run(case, folder / "resumed", workers, folder / "killed" / f"{after - 1:02d}.ckpt")
    return list(differences(whole, end))


def main() -> None:
    """Run all cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--pairs", type=int, default=20, help="pairs of kills a case")
    parser.add_argument("--sigkill", type=int, default=0, help="kills by SIGKILL, over the cases in turn")
    args = parser.parse_args()
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    total = wrong = 0
    for workers in args.workers:
        for case in args.cases:
            begun, count, bad = time.monotonic(), 0, 0
            with tempfile.TemporaryDirectory() as folder:
                for name, differing in kills(case, Path(folder), workers, args.pairs):
                    count += 1
                    if differing:
                        bad += 1
                        print(f"  {name}: {differing[:3]}", flush=True)
            print(
                f"{case}, {workers} workers: {count} kills, {bad} differ, {time.monotonic() - begun:.0f} s", flush=True
            )
            total, wrong = total + count, wrong + bad
    for number in range(args.sigkill):
        case = args.cases[number % len(args.cases)]
        with tempfile.TemporaryDirectory() as folder:
            differing = sigkill(case, Path(folder), args.workers[number % len(args.workers)], 1 + number % 5)
        total, wrong = total + 1, wrong + bool(differing)
        print(f"{case}, SIGKILL after {1 + number % 5} files: {differing or 'equal'}", flush=True)
    print(f"{total} kills, {wrong} differ")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
