"""Any folder of pictures as a DataModule: decoded in the workers, all cut to one size."""

from typing import Any, Literal

from torch import Tensor

from sslmodules.datamodules.files import FileFolder
from sslmodules.datamodules.images import ImageSet
from sslmodules.datamodules.pictures import EXTENSIONS, Pictures, common_size, height_and_width
from sslmodules.datamodules.whole import WholePictures


class ImageFolder(FileFolder):
    """A folder of pictures, however deep: batches of uint8 images (B, C, H, W), or `(images, labels)`.

    Pictures are turned upright (EXIF), enlarged or reduced (antialiased) until they cover the wanted size, and cut to
    it around their centre. Files come in natural order (2 before 10); hidden ones are left out, links are followed.

    Args:
        root: the pictures to train on.
        val_root: pictures for validation; None: a part of root is held out.
        test_root: pictures to test on and to predict; None: test is val, and predict is every picture under root.
        labeled_root: pictures with labels beside those of root, which then have none; the first folder below it names
            the class. They ride along in training for the probes, and without val_root a part of them is held out.
        labels: whether the first folder below root names the class.
        size: side of the square images, or their height and width; None: the size of the pictures if those looked at
            (up to 64) agree, else 224.
        mode: "RGB" or "L"; pictures of any other mode are converted.
        val_fraction: share held out of root, of each class if there are labels, in [0, 1); 0: no validation.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        on_error: a file that cannot be read is an error ("raise"), or left out, while in training the next one takes
            its place ("skip").
        extensions: endings of picture files, in any case; None: the common ones.
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of what is held out, the labels that stay and the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: at once, if a folder does not exist.
        ValueError: from `prepare_data` or `setup`, if a folder holds no picture or its classes do not fit; while
            loading, also in workers, if a file cannot be read and on_error="raise".

    Example:
        >>> import tempfile
        >>> from pathlib import Path
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

    kind = "picture"
    endings = EXTENSIONS

    def __init__(
        self,
        root: str,
        val_root: str | None = None,
        test_root: str | None = None,
        labeled_root: str | None = None,
        labels: bool = False,
        size: int | tuple[int, int] | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        on_error: Literal["raise", "skip"] = "raise",
        extensions: list[str] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        roots = (root, val_root, test_root, labeled_root)
        root, val_root, test_root, labeled_root = (None if path is None else str(path) for path in roots)  # type: ignore[assignment]
        super().__init__(
            root,
            val_root,
            test_root,
            labeled_root,
            labels,
            val_fraction,
            label_fraction,
            unlabeled,
            on_error,
            extensions,
            batch_size,
            num_workers,
            seed,
            drop_last,
        )
        self.save_hyperparameters(logger=False)
        self.size = size
        self.mode = mode
        self._shape: tuple[int, int] | None = None

    def predict_dataloader(self) -> Any:
        """Batches in the order of the files; or, for a module that predicts something of places, whole pictures.

        These come one by one. ``module.predicts_on`` says so: "whole" pictures are scaled until their shorter side is
        that of the squares that other modules see; those at "full size" only if `size` was given.
        """
        module = None if self.trainer is None else self.trainer.lightning_module
        reads = getattr(module, "predicts_on", "squares")
        squares = self.split("predict")
        if reads == "squares" or squares is None:
            return super().predict_dataloader()
        held: Pictures = squares.dataset
        full = reads == "full size" and self.size is None
        whole = WholePictures(held.files, held.labels, None if full else min(held.shape), self.mode, self.on_error)
        self._splits["whole"] = ImageSet(whole)
        return self._in_order("whole", 1)

    def dataset(self, files: list[str], labels: Tensor | None, split: str) -> Pictures:
        """The pictures, decoded to one size."""
        if self._shape is None:
            self._shape = height_and_width(self.size) or common_size(self._list("root")[0], self.on_error)
        return Pictures(files, labels, self._shape, self.mode, self.on_error)
