"""What online probe, momentum update and queue add to a training step, and that the queue is never copied.

Run `python benchmarks/step_overhead.py` (some minutes). A real Trainer runs SimCLR with a probe, and MoCo with a
probe, a teacher and a queue of 65,536 keys. Each callback's `on_train_batch_end` is timed; the step is the module's
`optimizer_step` (views, loss, backward, optimizer) and these callbacks. Loading is left out, which only makes the
shares larger.

The second table runs MoCo's loss against the queue, with backward and enqueueing, beside lightly's `NTXentLoss` with
its memory bank: the time, and the largest allocation that torch's profiler saw. Where that is smaller than the queue,
no copy of the queue can have been made.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightning.pytorch import LightningModule
from timing import begin, medians, milliseconds, parser, quiet_trainer, verdict
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from sslmodules import MoCo, SimCLR
from sslmodules.callbacks import FeatureQueue, MomentumUpdate, OnlineLinearProbe, QueueUpdate
from sslmodules.datamodules import LabeledDataModule, TensorImages
from sslmodules.losses import info_nce

TARGET = 0.03
CLASSES = 10
NAMES = {OnlineLinearProbe: "probe", MomentumUpdate: "momentum", QueueUpdate: "queue"}


def watch(owner: Any, method: str, times: list[float], device: str) -> None:
    """Note how long each call of a method of this one object takes, in milliseconds."""
    original = getattr(owner, method)

    @wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        result = None

        def work() -> None:
            nonlocal result
            result = original(*args, **kwargs)

        times.append(milliseconds(work, device)())
        return result

    setattr(owner, method, timed)


def step_times(module: LightningModule, args: argparse.Namespace, **options: Any) -> dict[str, float]:
    """Return the median times of the step and of each callback over a run."""
    count = args.batch * (args.rounds + args.warmup)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = LabeledDataModule(TensorImages(images, torch.arange(count) % CLASSES), batch_size=args.batch)
    callbacks = [OnlineLinearProbe(CLASSES), MomentumUpdate(), QueueUpdate()]
    times: dict[str, list[float]] = {name: [] for name in ("step", *NAMES.values())}
    for callback in callbacks:
        watch(callback, "on_train_batch_end", times[NAMES[type(callback)]], args.device)
    watch(module, "optimizer_step", times["step"], args.device)
    quiet_trainer(args.device, args.rounds + args.warmup, callbacks=callbacks, **options).fit(module, data)
    return {name: statistics.median(values[args.warmup :]) for name, values in times.items()}


def shares(args: argparse.Namespace) -> None:
    """Print each callback's share of the step."""
    options = {"precision": "bf16-mixed"} if args.device == "cuda" else {}
    methods: dict[str, Callable[[], LightningModule]] = {
        "SimCLR": lambda: SimCLR(args.encoder, jitter=0.5, blur=0, warmup_epochs=0),
        "MoCo": lambda: MoCo(args.encoder, queue_size=args.queue, size=32),
    }
    print(f"{args.encoder}, 32 px, batch {args.batch}, queue {args.queue:,} x 128, times in ms")
    print(f"{'method':<8} {'step':>9} {'probe':>8} {'momentum':>9} {'queue':>8} {'share':>7}   target < {TARGET:.0%}")
    for name, make in methods.items():
        t = step_times(make(), args, **options)
        added = sum(t[part] for part in NAMES.values())
        share = added / (added + t["step"])
        print(
            f"{name:<8} {t['step']:>9.2f} {t['probe']:>8.2f} {t['momentum']:>9.2f} {t['queue']:>8.2f} {share:>7.2%}   "
            f"{verdict(share < TARGET)}"
        )


def against_queue(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return ours and lightly's: loss against the queue, backward, enqueue."""
    query = torch.randn(args.batch, 128, device=args.device, requires_grad=True)
    keys = F.normalize(torch.randn(args.batch, 128, device=args.device), dim=1)
    queue = FeatureQueue(args.queue, 128).to(args.device)
    lightly = NTXentLoss(temperature=0.2, memory_bank_size=(args.queue, 128)).to(args.device)

    def ours() -> None:
        info_nce(query, keys, queue.features, temperature=0.2).backward()
        queue.enqueue(keys)

    def theirs() -> None:
        lightly(query, keys).backward()  # enqueues too

    return {"ours": ours, "lightly": theirs}


def largest_allocation(work: Callable[[], object], device: str) -> int:
    """Return the bytes of the largest allocation while the work is done."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities, profile_memory=True) as profiler:
        work()
    name = "self_device_memory_usage" if device == "cuda" else "self_cpu_memory_usage"
    return max(getattr(event, name) for event in profiler.events())


def allocations(args: argparse.Namespace) -> None:
    """Print time and largest allocation of the loss against a queue."""
    works = against_queue(args)
    times = medians({name: milliseconds(work, args.device) for name, work in works.items()}, args.rounds, args.warmup)
    size = 4 * args.queue * 128
    print(f"\nloss against the queue of {size / 1e6:.1f} MB, backward, enqueue")
    for name, work in works.items():
        largest = largest_allocation(work, args.device)
        copied = "smaller than the queue" if largest < size else "the queue's size or more"
        print(f"{name:<8} {times[name]:>9.2f} ms   largest allocation {largest / 1e6:>6.1f} MB: {copied}")


def main() -> None:
    """Print the tables."""
    arguments = parser(__doc__, rounds=12)
    arguments.add_argument("--encoder", default="resnet18-cifar")
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--queue", type=int, default=65536)
    arguments.add_argument("--warmup", type=int, default=2, help="steps that are not counted")
    args = arguments.parse_args()
    begin(args)
    shares(args)
    allocations(args)


if __name__ == "__main__":
    main()
