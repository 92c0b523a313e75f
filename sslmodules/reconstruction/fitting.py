"""What is read off the training images before the first step: how common colours are, or which there are."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, IterableDataset

from sslmodules.module import SSLModule


def fit_before_training(
    module: SSLModule,
    fit: Callable[[Iterable[Any]], None],
    buffers: Sequence[str],
    max_images: int,
    instead: str,
) -> None:
    """Let the first rank fit a module's buffers to images that are spread over the training set; give them to all.

    The run's random numbers and its place in the data stay as they are.

    Args:
        module: attached to a Trainer whose training loader is there.
        fit: sets the buffers, of batches as the loader yields them.
        buffers: their names.
        max_images: how many images, or clips, to read.
        instead: what the user can do where the training set cannot be read ahead.

    Raises:
        ValueError: the training set cannot be read ahead.
    """
    batches = spread_batches(module.trainer.train_dataloader, max_images, instead)
    if module.trainer.is_global_zero:
        with isolate_rng(include_cuda=False):  # a dataset may draw random numbers: the run's are its own
            fit(batches)
    kept = [module.get_buffer(name) for name in buffers]
    for buffer, value in zip(kept, module.trainer.strategy.broadcast([b.cpu() for b in kept]), strict=True):
        buffer.copy_(value)


def spread_batches(loader: Any, max_images: int, instead: str) -> DataLoader:
    """Batches of images that are spread evenly over a loader's dataset; the loader's own place in it stays."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset):
        what = type(loader if dataset is None else dataset).__name__
        raise ValueError(f"the colours of the training images cannot be read from a {what} before training; {instead}")
    total = len(dataset)  # type: ignore[arg-type]
    count = min(total, max_images)
    rows = [i * total // count for i in range(count)]
    pairs = getattr(loader.sampler, "pairs", None)  # labeled images ride along: items are asked for in pairs
    return DataLoader(
        loader.dataset,
        batch_size=None if loader.batch_sampler is None else 64,  # without one, items are batches already
        sampler=rows if pairs is None else [(row, row % pairs) for row in rows],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )
