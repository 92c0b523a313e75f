"""Pictures with masks of class numbers, for semantic segmentation: folders as of VOC, CamVid or ADE20K."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from sslmodules.datamodules.pictures import EXTENSIONS, picture_size, read_picture
from sslmodules.datamodules.splits import SplitDataModule, by_stem, existing, listed_stems, require_found

IGNORED = 255  # the number, in every batch, of pixels that count neither in training nor in a measurement
MASK_EXTENSIONS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm")


class MaskedPictures(Dataset):
    """Picture files and mask files as pairs of uint8 (3, H, W) and int64 (H, W), each of its own size.

    Args:
        pictures: paths.
        masks: paths, in the same order.
        num_classes: C; masks hold numbers below it, and 255.
        ignore: a further number of pixels that do not count.
        first_class: the number of the first class in the files.

    Example:
        >>> len(MaskedPictures(["a.jpg"], ["a.png"], num_classes=21))
        1

    """

    def __init__(
        self,
        pictures: Sequence[str],
        masks: Sequence[str],
        num_classes: int,
        ignore: int | None = None,
        first_class: int = 0,
    ) -> None:
        self.files = pictures
        self.masks = masks
        self.num_classes = num_classes
        self.ignore = ignore
        self.first_class = first_class

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A picture and its mask.

        Raises:
            ValueError: if one of them cannot be read, they differ in size, or the mask holds a number of no class; the
                sentence names the file.

        """
        picture, file = self.files[index], self.masks[index]
        image = read_picture(picture, picture_size(picture))
        mask = read_mask(file, self.num_classes, self.ignore, self.first_class)
        if mask.shape != image.shape[1:]:
            raise ValueError(
                f"{file} is {mask.shape[0]}x{mask.shape[1]} px and {picture} {image.shape[1]}x{image.shape[2]}: a mask "
                "is as large as its picture, so write it again"
            )
        return image, mask

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures (B, 3, H, W) and masks (B, H, W) at `rows`, smaller ones filled up with 0 and 255."""
        images, masks = zip(*(self[row] for row in rows.tolist()), strict=True)
        return filled_up(images, 0), filled_up(masks, IGNORED)


class MaskFolder(SplitDataModule):
    """Folders of pictures and of masks: batches of uint8 images (B, 3, H, W) and int64 masks (B, H, W).

    A mask has the name of its picture, apart from the ending, and one channel (also a palette's) of class numbers. In
    batches 255 says that a pixel does not count. Pictures come whole, in training too (a crop of one size is cut on the
    device); those that are smaller than the largest of their batch are filled up, at the bottom and on the right, with
    0, and their masks with 255.

    In the paths, `{split}` stands for the name of the split:

    - CamVid: `images="CamVid/{split}"`, `masks="CamVid/{split}annot"`, `test="test"`.
    - VOC: `images="VOC2012/JPEGImages"`, `masks="VOC2012/SegmentationClass"`,
      `lists="VOC2012/ImageSets/Segmentation/{split}.txt"`.
    - ADE20K: `images="ADE/images/{split}"`, `masks="ADE/annotations/{split}"`, `train="training"`, `val="validation"`,
      `first_class=1`.

    Args:
        images: folder of pictures, with the folders below it.
        masks: folder of masks, with the same folders below it.
        classes: their names, or how many there are.
        lists: text file that lists the pictures of a split, without their endings, one a line; None: all of the folder.
        ignore: a number in the masks of pixels that do not count, besides 255.
        first_class: the number of the first class in the masks; pixels below it do not count.
        train: what the training split is called.
        val: what the validation split is called; None: there is none.
        test: what the test split is called; None: test is val.
        batch_size: pictures in a batch of one process; None: 16, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: from `setup`, if a folder or a list does not exist.
        ValueError: at once, if there are not 2 to 255 classes, or the splits would be the same; from `setup`, if a
            picture has no mask or a split is empty; while loading, also in workers, if a mask does not fit.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("picture", "mask"):
        ...         os.mkdir(f"{folder}/{kind}")
        ...         for name, size in (("a", (6, 4)), ("b", (3, 5))):
        ...             Image.new("L", size, color=1).save(f"{folder}/{kind}/{name}.png")
        ...     data = MaskFolder(f"{folder}/picture", f"{folder}/mask", 2, val=None, batch_size=2, num_workers=0)
        ...     images, masks = next(iter(data.train_dataloader()))
        >>> images.shape, masks.shape, masks.unique()
        (torch.Size([2, 3, 5, 6]), torch.Size([2, 5, 6]), tensor([  1, 255]))

    """

    def __init__(
        self,
        images: str,
        masks: str,
        classes: list[str] | int,
        lists: str | None = None,
        ignore: int | None = None,
        first_class: int = 0,
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(train, val, test, batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(logger=False)
        self.classes = list(map(str, range(classes))) if isinstance(classes, int) else list(classes)
        if not 2 <= len(self.classes) <= IGNORED:
            raise ValueError(f"classes are {len(self.classes)}, expected 2 to {IGNORED}: pass their names or number")
        self.require_split(images, lists)
        self.images = images
        self.masks = masks
        self.lists = lists
        self.ignore = ignore
        self.first_class = first_class

    def predict_dataloader(self) -> Any:
        """Pictures one by one, in the dataset's order: none is filled up to the size of another."""
        return self._in_order("predict", 1)

    def dataset(self, name: str) -> MaskedPictures:
        """The pictures of a split and their masks."""
        folder, mask_folder = existing("images", self.images, name), existing("masks", self.masks, name)
        pictures, masks = by_stem(folder, EXTENSIONS), by_stem(mask_folder, MASK_EXTENSIONS)
        stems = list(pictures)
        if self.lists is not None:
            stems = listed_stems(existing("lists", self.lists, name))
            require_found(stems, pictures, "file", folder, "take them out of the list, or add them")
        require_found(stems, masks, "mask", mask_folder, "add them, or list those that have one with lists=")
        assert self.classes is not None
        return MaskedPictures(
            [pictures[stem] for stem in stems],
            [masks[stem] for stem in stems],
            len(self.classes),
            self.ignore,
            self.first_class,
        )


def read_mask(file: str, num_classes: int, ignore: int | None = None, first_class: int = 0) -> Tensor:
    """A mask (H, W) of class numbers from 0, int64; 255 where a pixel does not count.

    Raises:
        ValueError: if it cannot be read, has several channels or holds a number of no class; the sentence names it.

    """
    try:
        with Image.open(file) as image:
            values = torch.from_numpy(np.asarray(image).astype(np.int64))  # of a palette's picture its numbers
    except Exception as error:  # the decoders raise all kinds
        raise ValueError(f"{file} cannot be read as a mask ({type(error).__name__}: {error}): repair it") from error
    if values.ndim != 2:
        raise ValueError(
            f"{file} has {values.shape[2]} channels, expected one of class numbers: write its colours as numbers"
        )
    counts = (values >= first_class) & (values != IGNORED)
    if ignore is not None:
        counts &= values != ignore
    known = values < first_class + num_classes
    if not known[counts].all():
        raise ValueError(
            f"{file} holds the number {values[counts & ~known].min()}, expected {first_class} to "
            f"{first_class + num_classes - 1} for {num_classes} classes, or {IGNORED}: pass all classes, or a number "
            "that does not count as ignore="
        )
    return torch.where(counts, values - first_class, IGNORED)


def filled_up(tensors: Sequence[Tensor], value: int) -> Tensor:
    """Tensors (..., h, w) as one batch (B, ..., H, W), filled up with a value at the bottom and on the right."""
    height, width = (max(x.shape[axis] for x in tensors) for axis in (-2, -1))
    return torch.stack([F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), value=value) for x in tensors])
