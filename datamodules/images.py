"""From any map-style dataset to batches of uint8 images."""

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor


class TensorImages(Dataset):
    """Images that lie in memory; a batch is one indexing operation.

    Args:
        images: uint8 (N, C, H, W); may be a view (a permuted or expanded one), nothing is copied.
        labels: integers (N,), -1 where there is none; None when no image has one.

    Raises:
        ValueError: if the shapes or the type do not fit, or labels are floats or below -1.

    Example:
        >>> images = TensorImages(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> batch, labels = images.fetch(torch.tensor([4, 2]))
        >>> batch.shape, labels.tolist()
        (torch.Size([2, 3, 8, 8]), [4, 2])

    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"TensorImages takes uint8 images (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}: "
                "convert with .to(torch.uint8) and add the missing axis"
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"got {len(images)} images and labels of shape {tuple(labels.shape)}: pass one label each")
        self.images = images
        self.targets = None if labels is None else class_numbers(labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        image = self.images[index].contiguous()
        return image if self.targets is None else (image, int(self.targets[index]))

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images (B, C, H, W) and labels (B,) at `indices`."""
        return self.images[indices].contiguous(), None if self.targets is None else self.targets[indices]


class ImageSet(Dataset):
    """What the loaders read: ready batches of images from any map-style dataset.

    An item of the dataset may be a PIL image, a uint8 array (H, W) or (H, W, C), a uint8 tensor (H, W) or (C, H, W), a
    float tensor (left as it is), a pair `(image, label)`, or a mapping with `"image"` and maybe `"label"`.

    A batch is a tensor (B, C, H, W), or `(images, labels)` with int64 labels (B,), -1 where an image has none. Use it
    with `collate_fn=as_it_is`, because its `__getitems__` returns the finished batch.

    Args:
        dataset: any dataset with `__len__` and `__getitem__`.
        indices: the items that belong to the set, in this order; None: all.
        labels: (len(dataset),) to use in place of the items' own.
        drop_labels: yield images only.

    Raises:
        ValueError: on reading, if the images of one batch differ in shape, or labels are floats or below -1.
        TypeError: on reading, if an item holds no image.

    Example:
        >>> pictures = [(np.zeros((8, 8, 3), dtype=np.uint8), 7), (np.ones((8, 8, 3), dtype=np.uint8), 3)]
        >>> images, labels = ImageSet(pictures).__getitems__([1, 0])
        >>> images.shape, labels
        (torch.Size([2, 3, 8, 8]), tensor([3, 7]))

    """

    def __init__(
        self, dataset: Any, indices: Tensor | None = None, labels: Tensor | None = None, drop_labels: bool = False
    ) -> None:
        self.dataset = dataset
        self.indices = indices
        self.labels = labels
        self.drop_labels = drop_labels

    @property
    def in_memory(self) -> bool:
        """Whether workers would only cost time."""
        return isinstance(self.dataset, TensorImages)

    @property
    def files(self) -> list[str]:
        """The file of each item, or [] where items are no files."""
        files = getattr(self.dataset, "files", [])
        if len(files) != len(self.dataset) or self.indices is None:
            return files if len(files) == len(self.dataset) else []
        return [files[row] for row in self.indices.tolist()]

    def left_out(self, indices: Sequence[int]) -> Tensor:
        """Which items (B,) could not be read so far, and are no part of a batch of these `indices`."""
        if not hasattr(self.dataset, "left_out"):
            return torch.zeros(len(indices), dtype=torch.bool)
        rows = torch.as_tensor(indices)
        return self.dataset.left_out(rows if self.indices is None else self.indices[rows])

    def unlabeled_instead(self) -> "ImageSet":
        """This set, with a label of -1 for what stands in the place of a file that cannot be read."""
        if getattr(self.dataset, "instead", "unlabeled") == "unlabeled":
            return self
        dataset = copy.copy(self.dataset)
        dataset.instead = "unlabeled"
        return ImageSet(dataset, self.indices, self.labels, self.drop_labels)

    def __len__(self) -> int:
        return len(self.dataset if self.indices is None else self.indices)

    def __getitem__(self, index: int) -> Any:
        batch = self.__getitems__([index])
        return batch[0] if isinstance(batch, Tensor) else (batch[0][0], batch[1][0])

    def __getitems__(self, indices: Sequence[int]) -> Tensor | tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        if self.indices is not None:
            rows = self.indices[rows]
        images, labels = self._fetch(rows)
        if self.drop_labels:
            return images
        if self.labels is not None:
            labels = self.labels[rows]
        return images if labels is None else (images, labels)

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if hasattr(self.dataset, "fetch"):  # finished batches: TensorImages, files
            return self.dataset.fetch(rows)
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(rows.tolist())
        else:
            items = [self.dataset[row] for row in rows.tolist()]
        images, labels = zip(*map(image_and_label, items), strict=True)
        if self.drop_labels or self.labels is not None:  # the items' own may be anything
            labels = (None,) * len(images)
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"the images of one batch must have one shape, got {' and '.join(map(str, sorted(shapes)[:2]))}: "
                "resize and convert them in the dataset (ImageFolder does both)"
            )
        if all(label is None for label in labels):
            return torch.stack(images), None
        return torch.stack(images), class_numbers([-1 if label is None else label for label in labels])


class PairedSet(Dataset):
    """Images, with labeled ones riding along; read by pairs of indices that a `ResumableSampler(pairs=...)` yields.

    A batch is `{"image": (B, C, H, W), "labeled_image": (B, C', H', W'), "labeled_label": (B,)}`.

    Args:
        images: the images to learn from.
        labeled: images with labels.
        draws: whether what is read of an image differs from draw to draw, so that it is asked for by both numbers of
            its pair. The second number then counts on, and the labeled images begin anew.

    Example:
        >>> zeros = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
        >>> pairs = PairedSet(ImageSet(TensorImages(zeros)), ImageSet(TensorImages(zeros[:2], torch.tensor([5, 6]))))
        >>> pairs.__getitems__([(0, 1), (5, 0)])["labeled_label"]
        tensor([6, 5])

    """

    def __init__(self, images: ImageSet, labeled: ImageSet, draws: bool = False) -> None:
        self.images = images
        self.labeled = labeled
        self.draws = draws

    @property
    def in_memory(self) -> bool:
        """Whether workers would only cost time."""
        return self.images.in_memory and self.labeled.in_memory

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Any]:
        return {key: value[0] for key, value in self.__getitems__([pair]).items()}

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        left, right = zip(*pairs, strict=True)
        image, label = self.labeled.__getitems__([place % len(self.labeled) for place in right])
        images = self.images.__getitems__(pairs if self.draws else left)  # type: ignore[arg-type]
        return {"image": images, "labeled_image": image, "labeled_label": label}


def as_it_is(batch: Any) -> Any:
    """The collate function of an `ImageSet`, whose batches are finished."""
    return batch


def image_and_label(item: Any) -> tuple[Tensor, Any]:
    """The image of a dataset's item as a tensor (C, H, W), and its label or None.

    Raises:
        TypeError: if there is no image in it.

    """
    if isinstance(item, Mapping):
        if "image" not in item:
            raise TypeError(f"an item that is a mapping needs the key 'image', got the keys {sorted(map(str, item))}")
        return image_tensor(item["image"]), item.get("label")
    if isinstance(item, tuple | list):
        return image_tensor(item[0]), item[1] if len(item) > 1 else None
    return image_tensor(item), None


def class_numbers(labels: Any) -> Tensor:
    """Labels (N,) as int64, from a tensor, an array, or a sequence of numbers: classes from 0, and -1 for none.

    Raises:
        ValueError: if they are no whole numbers, or one is below -1.

    Example:
        >>> class_numbers([3, np.uint8(0), torch.tensor(-1)])
        tensor([ 3,  0, -1])

    """
    try:
        numbers = torch.as_tensor(labels).reshape(len(labels))
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0, dtype=torch.float)
    if numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(f"a label is {_no_number(labels)}, expected the number of a class from 0, or -1 for none")
    if len(numbers) and numbers.long().min() < -1:
        raise ValueError(f"a label is {numbers.min()}, expected the number of a class from 0, or -1 for none")
    return numbers.long()


def _no_number(labels: Any) -> str:
    for label in labels:
        try:
            operator.index(label)
        except TypeError:
            return repr(label)
    return repr(labels)


def image_tensor(image: Any) -> Tensor:
    """An image as a tensor (C, H, W): uint8 from pictures and arrays, whatever it was from a tensor or a clip of them.

    Raises:
        TypeError: if it is no image.

    """
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        return pil_to_tensor(image)
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        array = torch.as_tensor(image)
        return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()
    if isinstance(image, Tensor) and image.ndim in (2, 3, 4):
        return image[None] if image.ndim == 2 and image.dtype == torch.uint8 else image  # sounds (C, T) are no uint8
    shape = f" of shape {tuple(image.shape)}" if isinstance(image, np.ndarray | Tensor) else ""
    raise TypeError(
        f"expected an image (a PIL image, an array (H, W, C) or a tensor (C, H, W)), got {type(image).__name__}{shape}"
    )
