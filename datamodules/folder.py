"""Any folder of pictures as a DataModule: files listed in natural order, a part held out, classes by folder."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sslmodules.datamodules.base import ImageDataModule
from sslmodules.datamodules.images import ImageSet
from sslmodules.datamodules.labels import hold_out, keep_labels
from sslmodules.datamodules.pictures import EXTENSIONS, Pictures, common_size, list_pictures


class ImageFolder(ImageDataModule):
    """A folder of pictures, however deep: batches of uint8 images (B, C, H, W), or `(images, labels)`.

    Pictures are turned upright (EXIF), enlarged or reduced (antialiased) until they cover the wanted size, and cut to
    it around their centre. Files come in natural order (2 before 10); hidden ones are left out, links are followed.

    Args:
        root: the pictures to train on.
        val_root: pictures for validation; None: a part of root is held out.
        test_root: pictures to test on and to predict; None: test is val, and predict is every picture under root.
        labels: whether the first folder below root names the class.
        size: side of the square images; None: the size of the pictures if those looked at (up to 64) agree, else 224.
        mode: "RGB" or "L"; pictures of any other mode are converted.
        val_fraction: share held out of root, of each class if there are labels, in [0, 1); 0: no validation.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        on_error: a file that cannot be read is an error ("raise"), or the next one takes its place ("skip").
        extensions: endings of picture files, in any case; None: the common ones.
        batch_size: images in a batch of one process.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of what is held out, the labels that stay and the order.
        drop_last: leave out an odd last training batch.

    Raises:
        FileNotFoundError: at once, if a folder does not exist.
        ValueError: from `prepare_data` or `setup`, if a folder holds no picture or its classes do not fit; while
            loading, also in workers, if a file cannot be read and on_error="raise".

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("1.png", "2.png", "10.png"):
        ...         Image.new("L", (20, 30)).save(f"{folder}/{name}")
        ...     data = ImageFolder(folder, val_fraction=0, batch_size=2, num_workers=0)
        ...     print([Path(file).name for file in data.files("train")])
        ...     print(next(iter(data.train_dataloader())).shape)
        ['1.png', '2.png', '10.png']
        torch.Size([2, 3, 30, 20])

    """

    def __init__(
        self,
        root: str,
        val_root: str | None = None,
        test_root: str | None = None,
        labels: bool = False,
        size: int | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        on_error: Literal["raise", "skip"] = "raise",
        extensions: list[str] | None = None,
        batch_size: int = 256,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        root, val_root, test_root = (None if path is None else str(path) for path in (root, val_root, test_root))  # type: ignore[assignment]
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(logger=False)
        self.roots = {"root": root, "val_root": val_root, "test_root": test_root}
        for argument, path in self.roots.items():
            if path is not None and not Path(path).is_dir():
                raise FileNotFoundError(f"{argument}={path!r} is no folder here: pass the path of a folder of pictures")
        self.labels = labels
        self.size = size
        self.mode = mode
        self.val_fraction = val_fraction
        self.label_fraction = label_fraction
        self.unlabeled = unlabeled
        self.on_error = on_error
        self.extensions = tuple(ending.lower() for ending in extensions or EXTENSIONS)
        self._listed: dict[str, tuple[list[str], Tensor]] = {}
        self._shape: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of folders below root that hold pictures, or None without labels."""
        if self.labels:
            self._list("root")
        return super().num_classes

    @property
    def skipped(self) -> int:
        """Number of files that could not be read so far, over all splits and workers of this process."""
        sets = [found.dataset for found in self._splits.values() if found is not None]
        return len({file for dataset in sets for file in dataset.unreadable()})

    def files(self, split: str) -> list[str]:
        """The files of a split ("train", "val", "test", "predict"), in the order of its images."""
        images = self.split(split)
        return [] if images is None else images.dataset.files

    def prepare_data(self) -> None:
        """Look into every folder that was given."""
        for argument, path in self.roots.items():
            if path is not None:
                self._list(argument)

    def load(self, split: str) -> ImageSet | None:
        """The images of one split."""
        given = {"val": "val_root", "test": "test_root", "predict": "test_root"}.get(split)
        if given is not None and self.roots[given] is not None:
            return self._images(*self._list(given))
        if split == "test":
            return self.split("val")
        if split not in ("train", "val", "predict"):
            return None
        files, labels = self._list("root")
        fraction = self.val_fraction if self.roots["val_root"] is None else 0.0
        stays, held = hold_out(labels, fraction, self.seed)
        if split == "train":
            if self.labels:
                stays, labels = keep_labels(labels, stays, self.label_fraction, self.unlabeled, self.seed)
            return self._images([files[i] for i in stays.tolist()], labels[stays])
        if split == "val":
            return self._images([files[i] for i in held.tolist()], labels[held]) if len(held) else None
        return self._images(files, labels)

    def _images(self, files: list[str], labels: Tensor) -> ImageSet:
        if self._shape is None:
            self._shape = (
                (self.size, self.size) if self.size is not None else common_size(self._list("root")[0], self.on_error)
            )
        return ImageSet(Pictures(files, labels if self.labels else None, self._shape, self.mode, self.on_error))

    def _list(self, argument: str) -> tuple[list[str], Tensor]:
        """All files below a folder and their labels, -1 without."""
        if argument not in self._listed:
            root = str(self.roots[argument])
            files = list_pictures(root, self.extensions)
            if not files:
                raise ValueError(
                    f"{argument}={root!r} holds no picture ({', '.join(self.extensions)}): pass a folder that does, or "
                    "extensions= with the endings of its files"
                )
            labels = torch.full((len(files),), -1)
            if self.labels:
                if argument != "root":
                    self._list("root")  # the classes are those of the training images
                labels = self._labels(argument, root, files)
            self._listed[argument] = files, labels
        return self._listed[argument]

    def _labels(self, argument: str, root: str, files: list[str]) -> Tensor:
        parts = [Path(file).relative_to(root).parts for file in files]
        loose = next((part[0] for part in parts if len(part) == 1), None)
        if loose is not None:
            raise ValueError(
                f"labels=True takes the class from the first folder below {argument}={root!r}, but {loose!r} lies in "
                "no such folder: move it into one, or pass labels=False"
            )
        names = sorted({part[0] for part in parts})
        if argument == "root":
            lower = {name.lower() for name in names}
            if lower & {"train", "training"} and lower & {"val", "valid", "validation", "test", "testing"}:
                raise ValueError(
                    f"root={root!r} holds the folders {', '.join(names)}, which look like splits and not like classes: "
                    f"pass root={os.path.join(root, 'train')!r} and val_root={os.path.join(root, 'val')!r}"
                )
            self.classes = names
        assert self.classes is not None
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(
                f"{argument}={root!r} has folders that are no class of root={self.roots['root']!r}: "
                f"{', '.join(unknown[:5])}; expected only {', '.join(self.classes[:5])}"
                f"{', ...' if len(self.classes) > 5 else ''}"
            )
        number = {name: index for index, name in enumerate(self.classes)}
        return torch.tensor([number[part[0]] for part in parts])
