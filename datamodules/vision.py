"""CIFAR-10, Fashion-MNIST and STL-10 from torchvision's files, as uint8 tensors in memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import datasets

from sslmodules.datamodules.base import ImageDataModule
from sslmodules.datamodules.images import ImageSet, TensorImages
from sslmodules.datamodules.labels import hold_out, keep_labels


class _Labeled(ImageDataModule):
    """A training set of which a part is held out, and an official test set; a subclass writes `read`."""

    mode: str = "RGB"

    def __init__(
        self,
        root: str | os.PathLike[str],
        download: bool,
        val_fraction: float,
        label_fraction: float,
        unlabeled: str,
        batch_size: int | None,
        num_workers: int | None,
        seed: int,
        drop_last: bool | None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.root = str(root)
        self.download = download
        self.val_fraction = val_fraction
        self.label_fraction = label_fraction
        self.unlabeled = unlabeled
        self._read: dict[bool, TensorImages] = {}

    def read(self, train: bool, download: bool = False) -> TensorImages:
        """The official training or test images."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download what is missing, or say that it is."""
        self.read(train=False, download=self.download)

    def load(self, split: str) -> ImageSet | None:
        """The images of one split."""
        if split not in ("train", "val", "test"):
            return None
        train = split == "train" or (split == "val" and self.val_fraction > 0)
        if train not in self._read:
            self._read[train] = self.read(train)
        images = self._read[train]
        if not train:
            return ImageSet(images)
        labels = images.targets
        assert labels is not None
        stays, held = hold_out(labels, self.val_fraction, self.seed)
        if split == "val":
            return ImageSet(images, held)
        return ImageSet(images, *keep_labels(labels, stays, self.label_fraction, self.unlabeled, self.seed))


class CIFAR10(_Labeled):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in ten classes.

    Batches are `(images, labels)`, uint8 (B, 3, 32, 32).

    Args:
        root: folder that holds `cifar-10-batches-py`, or that it is downloaded to.
        download: fetch the files where they are missing (170 MB).
        val_fraction: share of each class held out of the training images, in [0, 1); 0 validates on the test images, as
            is common for online probes.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        num_workers: None: 0, for the images lie in memory.
        seed: of the split, the labels that stay and the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: from `prepare_data` or `setup`, if the files are missing or damaged.

    Example:
        >>> CIFAR10(batch_size=512, label_fraction=0.1).classes[:3]
        ['airplane', 'automobile', 'bird']

    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        root = str(root)
        super().__init__(
            root, download, val_fraction, label_fraction, unlabeled, batch_size, num_workers, seed, drop_last
        )
        self.save_hyperparameters(logger=False)
        self.classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

    def read(self, train: bool, download: bool = False) -> TensorImages:
        """The official training or test images; the array is torchvision's, not a copy."""
        data = _torchvision(datasets.CIFAR10, self.root, download, train=train)
        return TensorImages(torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))


class FashionMNIST(_Labeled):
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28x28, grey, in ten classes.

    Batches are `(images, labels)`: uint8 (B, 3, 28, 28), or (B, 1, 28, 28) with mode="L".

    Args:
        root: folder that holds `FashionMNIST/raw`, or that it is downloaded to.
        download: fetch the files where they are missing (30 MB).
        mode: "RGB" repeats the grey channel three times (in the batch, not in memory).
        val_fraction: share of each class held out of the training images, in [0, 1); 0 validates on the test images, as
            is common for online probes.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        num_workers: None: 0, for the images lie in memory.
        seed: of the split, the labels that stay and the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: from `prepare_data` or `setup`, if the files are missing.

    Example:
        >>> FashionMNIST(mode="L").num_classes
        10

    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        mode: Literal["RGB", "L"] = "RGB",
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        root = str(root)
        super().__init__(
            root, download, val_fraction, label_fraction, unlabeled, batch_size, num_workers, seed, drop_last
        )
        self.save_hyperparameters(logger=False)
        self.mode = mode
        self.classes = list(datasets.FashionMNIST.classes)

    def read(self, train: bool, download: bool = False) -> TensorImages:
        """The official training or test images."""
        data = _torchvision(datasets.FashionMNIST, self.root, download, train=train)
        channels = 3 if self.mode == "RGB" else 1
        return TensorImages(data.data[:, None].expand(-1, channels, -1, -1), data.targets)


class STL10(ImageDataModule):
    """STL-10: 100,000 unlabeled images of 96x96, with the 5,000 labeled ones riding along, and 8,000 to test on.

    Training batches are mappings: "image", uint8 (B, 3, 96, 96); "labeled_image" (B, 3, 96, 96) and "labeled_label"
    (B,), for an online probe. Val, test and predict are the test images, `(images, labels)`. Labels are 0 to 9.

    Args:
        root: folder that holds `stl10_binary`, or that it is downloaded to.
        download: fetch the files where they are missing (2.6 GB).
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        num_workers: None: 0, for the images lie in memory (2.8 GB).
        seed: of the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: from `prepare_data` or `setup`, if the files are missing or damaged.

    Example:
        >>> STL10(batch_size=128).num_classes
        10

    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        root = str(root)
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(logger=False)
        self.root = root
        self.download = download
        self.classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]

    def prepare_data(self) -> None:
        """Download what is missing, or say that it is."""
        _torchvision(datasets.STL10, self.root, self.download, split="test")

    def load(self, split: str) -> ImageSet | None:
        """The images of one split; val and test are the same object."""
        part = {"train": "unlabeled", "labeled": "train", "test": "test"}.get(split)
        if part is None:
            return self.split("test") if split == "val" else None
        data = _torchvision(datasets.STL10, self.root, False, split=part)
        labels: Tensor | None = None if part == "unlabeled" else torch.from_numpy(data.labels)
        return ImageSet(TensorImages(torch.from_numpy(data.data), labels))


def _torchvision(dataset: Callable[..., Any], root: str, download: bool, **options: Any) -> Any:
    """A torchvision dataset; where its files are missing or damaged, one sentence that says what to do."""
    name = getattr(dataset, "__name__", "the dataset")
    try:
        return dataset(root, download=download, **options)
    except (RuntimeError, OSError) as error:
        if download:
            raise FileNotFoundError(
                f"{name} could not be downloaded to {str(Path(root).resolve())!r} ({error}): "
                "check the network, or pass root= with the folder that holds its files"
            ) from error
        raise FileNotFoundError(
            f"{name} has no intact files under {str(Path(root).resolve())!r}: "
            "pass download=True, or root= with the folder that holds them"
        ) from error
