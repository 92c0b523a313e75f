"""Images per second of SimCLR at 32 px: from uint8 in memory through the Trainer, beside the step on ready-made views.

Run `python benchmarks/end_to_end.py`, or `python benchmarks/end_to_end.py --device cuda` (batch 512, bf16-mixed). Three
runs take turns (on a CPU that takes minutes), all through the Trainer, with the same module and the same step:

- compute: views made beforehand, on the device; nothing but the step is left;
- ours: uint8 images in memory, `LabeledDataModule`, views made on the device;
- lightly: PIL images, `SimCLRTransform` in the workers of a `DataLoader`, which yields ready-made views.

The first steps of a run are not counted. Both recipes are those of 32 px: jitter 0.5, no blur, no mean or std.

`--sync-check` (cuda only) runs every image method for some steps while torch raises an error for whatever waits for
the device.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightly.transforms import SimCLRTransform
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from timing import begin, medians, parser, quiet_trainer, synchronize, verdict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import sslmodules
from sslmodules import MoCo, MoCoV3, SimCLR, SSLModule
from sslmodules.callbacks import OnlineKNN, OnlineLinearProbe
from sslmodules.datamodules import LabeledDataModule, TensorImages

TARGET = 0.9
SIDE, CLASSES = 32, 10
DEFAULTS = {
    "cpu": {"batch": 128, "steps": 4, "warmup": 1, "workers": 2},
    "cuda": {"batch": 512, "steps": 150, "warmup": 40, "workers": 16},
}
METHODS: dict[str, Callable[[str], SSLModule]] = {
    "SimCLR": lambda encoder: SimCLR(encoder, size=SIDE, warmup_epochs=0),
    "MoCo": lambda encoder: MoCo(encoder, size=SIDE, queue_size=4096),
    "MoCo, symmetric": lambda encoder: MoCo(encoder, size=SIDE, queue_size=4096, symmetric=True, batch_norm_splits=8),
    "MoCoV3": lambda encoder: MoCoV3(encoder, size=SIDE, warmup_epochs=0),
    "MoCoV3, transformer": lambda _: MoCoV3.vit(size=SIDE, encoder_args={"patch_size": 4, "depth": 2}, warmup_epochs=0),
}


class Pictures(Dataset):
    """Images in memory as lightly takes them: one PIL image an item, two views made of it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels
        self.transform = SimCLRTransform(input_size=SIDE, cj_strength=0.5, gaussian_blur=0.0, normalize=None)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.arrays[index])), int(self.labels[index])


class Ready:
    """A loader of views that lie ready, the same few batches over and over."""

    def __init__(self, batches: list[Any], batch_size: int, count: int) -> None:
        self.batches = batches
        self.batch_size = batch_size
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (self.batches[i % len(self.batches)] for i in range(self.count))


class Clock(Callback):
    """The seconds between the end of the warm-up and the end of the run; the device is waited for only there."""

    def __init__(self, device: str, warmup: int) -> None:
        self.device = device
        self.warmup = warmup
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Start after the last step of the warm-up."""
        if trainer.global_step == self.warmup:
            synchronize(self.device)
            self.start = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        """Stop."""
        synchronize(self.device)
        self.seconds = time.perf_counter() - self.start


class NoWaiting(Callback):
    """Make torch raise an error, after a warm-up, for every operation that waits for the device."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin to forbid."""
        if trainer.global_step == self.warmup:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_epoch_end(self, *_: Any) -> None:
        """Allow again: the run is over."""
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        """Allow again, before the Trainer cleans up."""
        torch.cuda.set_sync_debug_mode("default")


def simclr(args: argparse.Namespace) -> SimCLR:
    """Return the method that all runs train, each from the same weights."""
    torch.manual_seed(args.seed)
    return SimCLR(args.encoder, size=SIDE, temperature=0.5, jitter=0.5, blur=0, warmup_epochs=0)


def precision(device: str) -> Any:
    """Return the Trainer's precision."""
    return "bf16-mixed" if device == "cuda" else "32-true"


def ready_views(images: Tensor, labels: Tensor, args: argparse.Namespace) -> Ready:
    """Return a few batches of views on the device, to be fed again and again."""
    method = simclr(args).to(args.device)
    batches = []
    for part, own in list(zip(images.split(args.batch), labels.split(args.batch), strict=True))[:4]:
        with torch.no_grad():
            batches.append([method.make_views(part.to(args.device)), own.to(args.device)])
    return Ready(batches, args.batch, args.warmup + args.steps)


def lightly_loader(images: Tensor, labels: Tensor, args: argparse.Namespace) -> DataLoader:
    """Return the peer's loader of ready-made views."""
    return DataLoader(
        Pictures(images, labels),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        pin_memory=args.device == "cuda",
    )


def images_per_second(feed: Callable[[], Any], args: argparse.Namespace) -> float:
    """Train for some steps and return the rate of those behind the warm-up."""
    data, clock = feed(), Clock(args.device, args.warmup)
    trainer = quiet_trainer(
        args.device, args.warmup + args.steps, callbacks=[clock], precision=precision(args.device), benchmark=True
    )
    trainer.fit(simclr(args), data)
    return args.steps * args.batch / clock.seconds


def compare(args: argparse.Namespace) -> None:
    """Print the three rates."""
    images, labels = random_images(args.batch * (args.warmup + args.steps))
    ready = ready_views(images, labels, args)
    feeds: dict[str, Callable[[], Any]] = {
        "compute": lambda: ready,
        "ours": lambda: LabeledDataModule(TensorImages(images, labels), batch_size=args.batch),
        "lightly": lambda: lightly_loader(images, labels, args),
    }
    measures = {name: functools.partial(images_per_second, feed, args) for name, feed in feeds.items()}
    rates = medians(measures, args.rounds, warmup=0)
    print(f"SimCLR, {args.encoder}, {SIDE} px, batch {args.batch}, {precision(args.device)}")
    for name, rate in rates.items():
        share = rate / rates["compute"]
        note = f"   target >= {TARGET:.2f}   {verdict(share >= TARGET)}" if name == "ours" else ""
        workers = f" ({args.workers} workers)" if name == "lightly" else ""
        print(f"{name + workers:<22} {rate:>9.1f} images/s   {share:>5.2f} of compute{note}")


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Return uint8 images and labels."""
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8), torch.arange(count) % CLASSES


def sync_check(args: argparse.Namespace) -> bool:
    """Print for each method whether a step waited for the device; return whether none did."""
    public = {name for name in sslmodules.__all__ if _is_image_method(getattr(sslmodules, name))}
    missing = sorted(public - {name.split(",")[0] for name in METHODS})
    for name in missing:
        print(f"{name:<22} not checked: add a line to METHODS")
    return all([_steps_without_waiting(name, args) for name in METHODS]) and not missing


def _is_image_method(found: Any) -> bool:
    return (
        isinstance(found, type)
        and issubclass(found, SSLModule)
        and found is not SSLModule
        and found.input_kind == "image"
    )


def _steps_without_waiting(name: str, args: argparse.Namespace) -> bool:
    images, labels = random_images(args.batch * 6)
    data = LabeledDataModule(TensorImages(images, labels), batch_size=args.batch)
    callbacks = [OnlineLinearProbe(CLASSES), OnlineKNN(CLASSES), NoWaiting(warmup=3)]
    module: LightningModule = METHODS[name](args.encoder)
    try:
        quiet_trainer(args.device, 6, callbacks=callbacks, precision=precision(args.device)).fit(module, data)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        print(f"{name:<22} WAITED: {_last_own_line(error)}: {error}")
        return False
    print(f"{name:<22} no step waited")
    return True


def _last_own_line(error: BaseException) -> str:
    trace, found = error.__traceback__, "outside of sslmodules"
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("sslmodules"):
            found = f"{module} line {trace.tb_lineno}"
        trace = trace.tb_next
    return found


def main() -> None:
    """Print the table, or the check."""
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--encoder", default="resnet18-cifar")
    for name, meaning in {
        "batch": "images a batch",
        "steps": "counted steps of a run",
        "warmup": "steps before them",
        "workers": "of the peer's loader",
    }.items():
        arguments.add_argument(
            f"--{name}", type=int, help=f"{meaning}; by default as fits the device: {_defaults(name)}"
        )
    arguments.add_argument("--sync-check", action="store_true")
    args = arguments.parse_args()
    if args.sync_check and args.device != "cuda":
        arguments.error("--sync-check needs --device cuda")
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    begin(args)
    if args.sync_check:
        sys.exit(0 if sync_check(args) else 1)
    compare(args)


def _defaults(name: str) -> str:
    return ", ".join(f"{values[name]} on {device}" for device, values in DEFAULTS.items())


if __name__ == "__main__":
    main()
