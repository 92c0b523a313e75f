"""Any folder of files as a DataModule: listed in natural order, a part held out, classes by folder."""

import os
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslmodules.datamodules.base import ImageDataModule
from sslmodules.datamodules.images import ImageSet
from sslmodules.datamodules.labels import hold_out, keep_labels
from sslmodules.distributed import gather_objects, rank

ADVICE = 'repair or remove it, or pass on_error="skip"'
NAMED = 10  # unreadable files, in the sentence that counts them

# What a batch holds in the place of a file that cannot be read: the next one; that one without a label (-1), where all
# processes need batches of one size; or nothing.
Instead = Literal["next", "unlabeled", "nothing"]
INSTEAD: dict[str, Instead] = {"train": "next", "labeled": "next", "predict": "nothing"}  # by split

Value = TypeVar("Value")


def common(files: Sequence[str], value_of: Callable[[str], Value], usual: Value, on_error: str = "raise") -> Value:
    """What is true of all files if up to 64 of them, evenly spread, agree; else what is usual.

    Args:
        files: paths.
        value_of: reads it from a file, and raises a ValueError that names the file if it cannot.
        usual: the value where they differ.
        on_error: "raise" that ValueError, or "skip" the file.

    Example:
        >>> common(["a.png", "b.png"], len, 0), common(["a.png", "bc.png"], len, 0)
        (5, 0)

    """
    found = set()
    for place in np.linspace(0, len(files) - 1, min(64, len(files))).astype(int):
        try:
            found.add(value_of(files[place]))
        except ValueError as error:
            if on_error == "raise":
                raise ValueError(f"{error}: {ADVICE}") from error
    return found.pop() if len(found) == 1 else usual


class Files(Dataset):
    """Files as tensors of one shape, or pairs with a label; a subclass writes `read`.

    Args:
        files: paths.
        labels: (len(files),) or None.
        on_error: "raise" a ValueError for a file that cannot be read, or "skip" it.

    Attributes:
        instead: what a batch holds in the place of a file that is skipped: the "next" one that can be read, as in
            training; that one "unlabeled", with label -1; or "nothing". A batch of which no file can be read holds
            another one all the same, because not every encoder takes an empty batch; see :meth:`left_out`.

    Example:
        >>> class Lengths(Files):
        ...     def read(self, file, draw):
        ...         return torch.tensor(len(file))
        >>> Lengths(["a.png", "bc.png"], torch.tensor([7, 8])).fetch(torch.tensor([1, 0]))
        (tensor([6, 5]), tensor([8, 7]))

    """

    instead: Instead = "next"

    def __init__(self, files: list[str], labels: Tensor | None, on_error: str = "raise") -> None:
        self.files = files
        self.labels = labels
        self.on_error = on_error
        self._bad = torch.zeros(len(files), dtype=torch.bool).share_memory_()  # written by the workers

    def read(self, file: str, draw: int) -> Tensor:
        """One file; `draw` counts how often any file was drawn, for what is cut at random.

        Raises:
            ValueError: if the file cannot be read; the sentence names it.

        """
        raise NotImplementedError(f"{type(self).__name__} does not say how files are read: write read(file, draw)")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | Sequence[int]) -> Tensor | tuple[Tensor, int]:
        """A file by its place, or by its place and the number of the draw."""
        start, draw = (index, index) if isinstance(index, int) else index
        for place in range(start, start + len(self.files)):
            place %= len(self.files)
            item = self._read(place, draw)
            if item is None:
                continue
            if self.labels is None:
                return item
            return item, int(self.labels[place]) if place == start or self.instead == "next" else -1
        raise ValueError(f"none of the {len(self.files)} files can be read, the first is {self.files[0]}")

    def _read(self, place: int, draw: int) -> Tensor | None:
        """One file, or None where it is skipped."""
        if self._bad[place] and self.instead == "nothing":  # what was left out once stays so, for `left_out` to be true
            return None
        try:
            return self.read(self.files[place], draw)
        except ValueError as error:
            if self.on_error == "raise":
                raise ValueError(f"{error}: {ADVICE}") from error
            if not self._bad[place]:
                self._bad[place] = True
                what = "it is left out" if self.instead == "nothing" else "the next file takes its place"
                warnings.warn(f"{error}: {what}", stacklevel=2)
            return None

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The files (B, ...) and labels (B,) at `rows`, (B,) or with the number of the draw (B, 2)."""
        items = [self[row] for row in rows.tolist()]
        if self.instead == "nothing":
            items = [item for item, out in zip(items, self.left_out(rows), strict=True) if not out] or items[:1]
        if self.labels is None:
            return self.stack(items), None
        tensors, labels = zip(*items, strict=True)
        return self.stack(tensors), torch.tensor(labels)

    def left_out(self, rows: Tensor) -> Tensor:
        """Which of the files at `rows` (B,) could not be read so far, in any worker: (B,) bool."""
        return self._bad[rows]

    def stack(self, items: Sequence[Any]) -> Tensor:
        """One batch (B, ...) of what was read."""
        return torch.stack(items)  # type: ignore[arg-type]

    def unreadable(self) -> list[str]:
        """The files that could not be read so far, in any worker."""
        return [self.files[place] for place in torch.nonzero(self._bad).flatten().tolist()]


class FileFolder(ImageDataModule):
    """A folder of files, however deep; a subclass says which by `extensions`, and by `dataset` how they are read.

    Files come in natural order (2 before 10); hidden ones are left out, links are followed.

    Args:
        root: the files to train on.
        val_root: files for validation; None: a part of root is held out.
        test_root: files to test on and to predict; None: test is val, and predict is every file under root.
        labeled_root: files with labels beside those of root, which then have none. They ride along in training for the
            probes, and without val_root a part of them is held out.
        labels: whether the files have classes: by default, the first folder below root names it.
        val_fraction: share held out of root, of each class if there are labels, in [0, 1); 0: no validation.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        on_error: a file that cannot be read is an error ("raise"), or left out, while in training the next one takes
            its place ("skip").
        extensions: endings of the files, in any case; None: the common ones.
        batch_size: files in a batch of one process; None: the class's default_batch_size, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of what is held out, the labels that stay and the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: at once, if a folder does not exist.
        ValueError: from `prepare_data` or `setup`, if a folder holds no such file or its classes do not fit; while
            loading, also in workers, if a file cannot be read and on_error="raise".

    """

    kind: ClassVar[str]  # of file, for the sentences
    endings: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str,
        val_root: str | None,
        test_root: str | None,
        labeled_root: str | None,
        labels: Any,
        val_fraction: float,
        label_fraction: float,
        unlabeled: str,
        on_error: str,
        extensions: list[str] | None,
        batch_size: int | None,
        num_workers: int | None,
        seed: int,
        drop_last: bool | None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.roots = {"root": root, "val_root": val_root, "test_root": test_root, "labeled_root": labeled_root}
        for argument, path in self.roots.items():
            if path is not None and not Path(path).is_dir():
                raise FileNotFoundError(
                    f"{argument}={path!r} is no folder here: pass the path of a folder of {self.kind}s"
                )
        if labeled_root is not None and labels is True:
            raise ValueError(
                "labels=True takes classes from the folders of root, and labeled_root from its own: pass one of the two"
            )
        self.labels = labels if labeled_root is None else labels or "folder"
        self._classes_from = "root" if labeled_root is None else "labeled_root"
        self.val_fraction = val_fraction
        self.label_fraction = label_fraction
        self.unlabeled = unlabeled
        self.on_error = on_error
        self.extensions = tuple(ending.lower() for ending in extensions or self.endings)
        self._listed: dict[str, tuple[list[str], Tensor]] = {}

    def dataset(self, files: list[str], labels: Tensor | None, split: str) -> Files:
        """How the files of a split are read."""
        raise NotImplementedError(f"{type(self).__name__} has no method dataset(files, labels, split)")

    def listed(self, root: str) -> list[str]:
        """The files below a folder, in natural order."""
        return list_files(root, self.extensions)

    def class_names(self, argument: str, root: str, files: list[str]) -> list[str]:
        """The class of each file below a folder."""
        parts = [Path(file).relative_to(root).parts for file in files]
        loose = next((part[0] for part in parts if len(part) == 1), None)
        if loose is not None:
            raise ValueError(
                f"the class of a {self.kind} is the first folder below {argument}={root!r}, but {loose!r} lies in no "
                "such folder: move it into one, or pass labels=False"
            )
        names = [part[0] for part in parts]
        lower = {name.lower() for name in names}
        if (
            argument == self._classes_from
            and lower & {"train", "training"}
            and lower & {"val", "valid", "validation", "test", "testing"}
        ):
            raise ValueError(
                f"{argument}={root!r} holds the folders {', '.join(sorted(set(names)))}, which look like splits and "
                f"not like classes: pass {argument}={os.path.join(root, 'train')!r} and "
                f"val_root={os.path.join(root, 'val')!r}"
            )
        return names

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the files below root or labeled_root, or None without labels."""
        if self.labels:
            self._list(self._classes_from)
        return super().num_classes

    @property
    def skipped(self) -> int:
        """Number of files that could not be read so far, over all splits and workers of this process."""
        return len(self._unreadable())

    def files(self, split: str) -> list[str]:
        """The files of a split ("train", "val", "test", "predict"), in the order of its items."""
        found = self.split(split)
        return [] if found is None else found.dataset.files

    def prepare_data(self) -> None:
        """Look into every folder that was given."""
        for argument, path in self.roots.items():
            if path is not None:
                self._list(argument)

    def load(self, split: str) -> ImageSet | None:
        """The files of one split."""
        given = {"val": "val_root", "test": "test_root", "predict": "test_root"}.get(split)
        if given is not None and self.roots[given] is not None:
            return self._set(*self._list(given), split)
        if split == "test":
            return self.split("val")
        if self.roots["labeled_root"] is not None and split in ("labeled", "val"):
            return self._labeled(split)
        if split not in ("train", "val", "predict"):
            return None
        files, labels = self._list("root")
        if self.roots["labeled_root"] is not None:
            return self._set(files, labels, split)
        fraction = self.val_fraction if self.roots["val_root"] is None else 0.0
        stays, held = hold_out(labels, fraction, self.seed)
        if split == "train":
            if self.labels:
                stays, labels = keep_labels(labels, stays, self.label_fraction, self.unlabeled, self.seed)
            return self._set([files[i] for i in stays.tolist()], labels[stays], split)
        if split == "val":
            return self._set([files[i] for i in held.tolist()], labels[held], split) if len(held) else None
        return self._set(files, labels, split)

    def _labeled(self, split: str) -> ImageSet | None:
        """The files below labeled_root that ride along, or those that are held out of it."""
        files, labels = self._list("labeled_root")
        stays, held = hold_out(labels, self.val_fraction if self.roots["val_root"] is None else 0.0, self.seed)
        if split == "val":
            chosen = held
        else:
            chosen, _ = keep_labels(labels, stays, self.label_fraction, "drop", self.seed)
        return self._set([files[i] for i in chosen.tolist()], labels[chosen], split) if len(chosen) else None

    def teardown(self, stage: str) -> None:
        """Say which files could not be read in a run, in any of its processes."""
        if self.on_error == "raise":
            return
        bad = sorted({file for found in gather_objects(self._unreadable()) for file in found}, key=_natural)
        if bad and rank() == 0:
            what = "others took their place" if stage == "fit" else "left out"
            more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            print(f"{len(bad)} file{'s' * (len(bad) > 1)} could not be read, {what}: {', '.join(bad[:NAMED])}{more}")

    def _unreadable(self) -> list[str]:
        sets = [found.dataset for found in self._splits.values() if found is not None]
        return list(dict.fromkeys(file for dataset in sets for file in dataset.unreadable()))

    def _set(self, files: list[str], labels: Tensor, split: str) -> ImageSet:
        dataset = self.dataset(files, labels if (labels >= 0).any() else None, split)
        dataset.instead = INSTEAD.get(split, "unlabeled")
        return ImageSet(dataset)

    def _list(self, argument: str) -> tuple[list[str], Tensor]:
        """All files below a folder and their labels, -1 without."""
        if argument not in self._listed:
            root = str(self.roots[argument])
            files = self.listed(root)
            if not files:
                raise ValueError(
                    f"{argument}={root!r} holds no {self.kind} ({', '.join(self.extensions)}): pass a folder that "
                    "does, or extensions= with the endings of its files"
                )
            labels = torch.full((len(files),), -1)
            if self.labels and (argument != "root" or self._classes_from == "root"):
                if argument != self._classes_from:
                    self._list(self._classes_from)
                labels = self._numbered(argument, root, self.class_names(argument, root, files))
            self._listed[argument] = files, labels
        return self._listed[argument]

    def _numbered(self, argument: str, root: str, names: list[str]) -> Tensor:
        if argument == self._classes_from:
            self.classes = sorted(set(names))
        assert self.classes is not None
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(
                f"{argument}={root!r} has files of no class of {self._classes_from}="
                f"{self.roots[self._classes_from]!r}: "
                f"{', '.join(unknown[:5])}; expected only {', '.join(self.classes[:5])}"
                f"{', ...' if len(self.classes) > 5 else ''}"
            )
        number = {name: index for index, name in enumerate(self.classes)}
        return torch.tensor([number[name] for name in names])


def list_files(root: str, extensions: Sequence[str]) -> list[str]:
    """All files below a folder with one of the endings, in natural order; hidden files and folders are left out.

    Links to folders are followed, each folder once. Pipes, sockets and devices are no files whatever they are called:
    opening one may wait for ever.
    """
    found: list[tuple[list[tuple[int, int, str]], str]] = []
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and name.lower().endswith(tuple(extensions)):
                path = os.path.join(folder, name)
                if not _is_special(path):
                    found.append((_natural(os.path.relpath(path, root)), path))
    return [path for _, path in sorted(found)]


def _is_special(path: str) -> bool:
    """Whether a path is a pipe, a socket or a device; not so a broken link, which an error names when it is read."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _natural(path: str) -> list[tuple[int, int, str]]:
    """A key that sorts by folder, and numbers by value."""
    pieces = re.split(r"(\d+)", path.replace(os.sep, "\0"))
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]
