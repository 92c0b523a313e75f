"""Features that are computed once: kept on disk under a name made of the weights, the images and what was read."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from sslmodules.callbacks.features import labeled_part
from sslmodules.datamodules.images import ImageSet
from sslmodules.evaluation.base import Evaluation
from sslmodules.evaluation.features import Features, evenly
from sslmodules.evaluation.files import locked
from sslmodules.module import SSLModule
from sslmodules.storage import atomic_path

SAMPLED = 32  # images of a data set that stand for all


def in_order(loader: Any, max_images: int | None = None) -> DataLoader:
    """A loader of the same images from the first to the last, or of so many of them, evenly spaced.

    Labeled images that ride along with others are taken in their place. Files that cannot be read have no label.

    Args:
        loader: of a map-style dataset.
        max_images: None takes all.

    Raises:
        ValueError: a loader of something else.

    >>> [batch.tolist() for batch in in_order(DataLoader(range(10), 2, shuffle=True), 4)]
    [[0, 2], [5, 7]]
    """
    dataset: Any = getattr(loader, "dataset", None)
    dataset = getattr(dataset, "labeled", dataset)  # of a PairedSet
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"{type(loader).__name__} has no dataset with places, so that no images can be chosen from it; pass a "
            "DataModule whose loaders have a map-style dataset"
        )
    if isinstance(dataset, ImageSet):
        dataset = dataset.unlabeled_instead()
    chosen = Subset(dataset, evenly(len(dataset), len(dataset) if max_images is None else max_images))
    batch_size = getattr(loader, "batch_size", None) or 256
    workers = loader.num_workers
    return DataLoader(
        chosen, batch_size, num_workers=workers, collate_fn=loader.collate_fn, persistent_workers=workers > 0
    )


def cached(path: Path, compute: Callable[[], Features]) -> Features:
    """Features from a file; where it is missing or cannot be read, they are computed and written by one process."""
    with locked(path):
        found = _read(path)
        if found is None:
            computed = compute()
            tensors = {f"stage_{n}": stage.contiguous() for n, stage in computed.stages.items()}
            tensors |= {"representation": computed.representation.contiguous(), "labels": computed.labels}
            with atomic_path(path) as part:
                save_file(tensors, part)
            found = _read(path)
    assert found is not None
    return found


def _read(path: Path) -> Features | None:
    """Features from a file; None where there is none, or one that was cut off or holds something else."""
    try:
        tensors = load_file(path)
        stages = sorted(int(name.removeprefix("stage_")) for name in tensors if name.startswith("stage_"))
        return Features(tensors["representation"], tensors["labels"], {n: tensors[f"stage_{n}"] for n in stages})
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError) as error:
        print(f"{path} cannot be read ({error}), and is computed again", flush=True)
        return None


def weights_key(module: SSLModule) -> str:
    """A hash of an encoder, its weights, and how it is fed."""
    method = module.method if isinstance(module, Evaluation) else module
    fed = (type(module.encoder).__name__, module.in_channels, module.size, module.mean, module.std, method.reads_map)
    states = [part.state_dict() for part in module.encoding_parts.values()]
    return _hash(fed, *(part for state in states for name in sorted(state) for part in (name, state[name])))


def data_key(loader: DataLoader, files: Sequence[str] = ()) -> str:
    """A hash of a loader's images and labels: how many, some of them evenly spaced, and name, size and date of files.

    Where no files are given, a change of other images goes unnoticed.
    """
    dates = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in (os.stat(file),)]
    parts: list[Any] = [len(loader.dataset), dates]  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # where items are transformed at random
        for batch in in_order(loader, SAMPLED):
            parts += labeled_part(batch, several=True) or [batch]
    return _hash(*parts)


def _hash(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
