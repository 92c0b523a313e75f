"""Data whose splits lie in folders or lists of their own: the base of masks and boxes."""

import os
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from sslmodules.datamodules.base import ImageDataModule
from sslmodules.datamodules.files import list_files
from sslmodules.datamodules.images import ImageSet

SPLIT = "{split}"


class SplitDataModule(ImageDataModule):
    """Pictures with more than a label each; a subclass says by `dataset` how the items of a split are read.

    Args:
        train: what the training split is called.
        val: what the validation split is called; None: there is none.
        test: what the test split is called; None: test is val.
        batch_size: pictures in a batch of one process; None: the class's default_batch_size, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Example:
        >>> import torch
        >>> class Letters(SplitDataModule):
        ...     def dataset(self, name):
        ...         return [torch.full((1, 2, 2), ord(letter), dtype=torch.uint8) for letter in name]
        >>> data = Letters("abcd", "xy", None, batch_size=2, num_workers=0, seed=0, drop_last=True)
        >>> len(data.split("train")), next(iter(data.test_dataloader()))[:, 0, 0, 0]
        (4, tensor([120, 121], dtype=torch.uint8))

    """

    default_batch_size = 16

    def __init__(
        self,
        train: Any,
        val: Any,
        test: Any,
        batch_size: int | None,
        num_workers: int | None,
        seed: int,
        drop_last: bool | None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.names = {"train": train, "val": val, "test": test}

    def dataset(self, name: Any) -> Dataset:
        """The items of a split by its name, with a method `fetch(rows)` that gives finished batches."""
        raise NotImplementedError(f"{type(self).__name__} has no method dataset(name)")

    def load(self, split: str) -> ImageSet | None:
        """The items of one split."""
        if split == "test" and self.names["test"] is None:
            return self.split("val")
        name = self.names.get(split)
        return None if name is None else ImageSet(self.dataset(name))

    def files(self, split: str) -> list[str]:
        """The pictures of a split ("train", "val", "test", "predict"), in the order of its items."""
        found = self.split(split)
        return [] if found is None else found.files

    def require_split(self, *paths: str | None) -> None:
        """Raise a ValueError where none of the paths tells the splits apart though there are several."""
        several = any(self.names[split] not in (None, self.names["train"]) for split in ("val", "test"))
        if several and not any(SPLIT in path for path in paths if path is not None):
            raise ValueError(
                f"no path says {SPLIT}, so that all splits would hold the same pictures: write it where the name of "
                "the split stands, or pass val=None and test=None"
            )


def existing(argument: str, path: str, name: str = "") -> str:
    """A path with the name of the split filled in.

    Raises:
        FileNotFoundError: if there is nothing.

    """
    path = path.replace(SPLIT, name)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{argument}={path!r} does not exist: pass the path of one that does")
    return path


def by_stem(folder: str, extensions: Sequence[str]) -> dict[str, str]:
    """Path of each file below a folder, by what stands before its ending, in natural order."""
    return {os.path.splitext(os.path.relpath(file, folder))[0]: file for file in list_files(folder, extensions)}


def listed_stems(file: str) -> list[str]:
    """The first word of each line of a list file, as VOC has them."""
    with open(file, encoding="utf-8") as lines:
        return [line.split()[0] for line in lines if line.strip()]


def require_found(stems: Sequence[str], found: dict[str, str], what: str, folder: str, advice: str) -> None:
    """Raise a ValueError that names the stems of which there is no file."""
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(stems)} pictures have no {what} in {folder!r}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; {advice}"
        )
