"""What the benchmarks share: taking turns, medians, a quiet Trainer, and a line on where the numbers come from."""

import argparse
import datetime
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything


def parser(docstring: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks have."""
    arguments = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=rounds, help="each side's turns; the medians are reported")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return arguments


def begin(args: argparse.Namespace) -> None:
    """Seed, fix the number of threads, silence Lightning and print where the numbers come from."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(args.seed, verbose=False)
    torch.set_num_threads(args.threads)
    print(where(args.device))


def where(device: str) -> str:
    """Return hardware, torch version and date in one line."""
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {os.cpu_count()} cores"
    threads = f"{torch.get_num_threads()} threads"
    return f"{hardware}, {threads}, torch {torch.__version__}, {datetime.date.today().isoformat()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synchronize(device: str) -> None:
    """Wait for the device; the CPU is never behind."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], device: str) -> Callable[[], float]:
    """Return a measurement of how long the work takes."""

    def measure() -> float:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return 1000 * (time.perf_counter() - start)

    return measure


def medians(measures: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Take the measurements in turn, round by round; the first rounds fill caches and are not counted."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for done in range(warmup + rounds):
        for name, measure in measures.items():
            value = measure()
            if done >= warmup:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def report(what: str, ours: float, other: str, theirs: float, target: float, unit: str = "ms") -> None:
    """Print one line: ours beside another, their ratio, and the ratio that must not be exceeded."""
    ratio = ours / theirs
    print(
        f"{what:<34} ours {ours:>9.2f} {unit}   {other} {theirs:>9.2f} {unit}   ratio {ratio:>6.3f}   "
        f"target <= {target:.2f}   {verdict(ratio <= target)}"
    )


def verdict(reached: bool) -> str:
    """Return the word behind a target."""
    return "reached" if reached else "MISSED"


def quiet_trainer(device: str, steps: int, **kwargs: Any) -> Trainer:
    """Return a Trainer of so many steps that writes and shows nothing."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"max_steps": steps, "max_epochs": -1, "use_distributed_sampler": False, **quiet, **kwargs}
    return Trainer(accelerator="gpu" if device == "cuda" else "cpu", devices=1, **options)
