"""Handwritten digits that come with scikit-learn: nothing to download, an epoch in a fraction of a second."""

from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from sslmodules.datamodules.base import ImageDataModule
from sslmodules.datamodules.images import ImageSet, TensorImages
from sslmodules.datamodules.labels import hold_out, keep_labels


class Digits(ImageDataModule):
    """1,797 grey digits of 8x8 pixels in ten classes: 1,500 to train on, 297 held out, the same for val and test.

    Batches are `(images, labels)`: uint8 (B, 3, 8, 8), or (B, 1, 8, 8) with mode="L".

    Args:
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        mode: "RGB" repeats the grey channel three times.
        size: side to enlarge the images to, once, bilinear; None: 8.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        num_workers: None: 0, for the images lie in memory.
        seed: of the split, the labels that stay and the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Example:
        >>> data = Digits(batch_size=64, size=16)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype, labels.shape, data.num_classes
        (torch.Size([64, 3, 16, 16]), torch.uint8, torch.Size([64]), 10)

    """

    def __init__(
        self,
        batch_size: int | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        size: int | None = None,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(logger=False)
        self.mode = mode
        self.size = size
        self.label_fraction = label_fraction
        self.unlabeled = unlabeled
        self.classes = [str(digit) for digit in range(10)]
        self._images: TensorImages | None = None

    def load(self, split: str) -> ImageSet | None:
        """The images of one split."""
        if split not in ("train", "val", "test"):
            return None
        images = self._digits()
        labels = images.targets
        assert labels is not None
        stays, held = hold_out(labels, 297 / 1797, self.seed)
        if split != "train":
            return ImageSet(images, held)
        return ImageSet(images, *keep_labels(labels, stays, self.label_fraction, self.unlabeled, self.seed))

    def _digits(self) -> TensorImages:
        if self._images is None:
            bunch = load_digits()
            images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)  # (N, 1, 8, 8)
            if self.size is not None:
                images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
            channels = 3 if self.mode == "RGB" else 1
            images = images.round().to(torch.uint8).expand(-1, channels, -1, -1)
            self._images = TensorImages(images, torch.from_numpy(bunch.target))
        return self._images
