"""Picture files: found below a folder, decoded in the workers, cut to one size."""

import math
import os
import re
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ADVICE = 'repair or remove it, or pass on_error="skip"'
ORIENTATION = {  # the EXIF tag's values, and what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Pictures(Dataset):
    """Picture files as uint8 tensors (C, H, W) of one size, or pairs with a label.

    Args:
        files: paths.
        labels: (len(files),) or None.
        shape: height and width.
        mode: "RGB" or "L".
        on_error: "raise" a ValueError for a file that cannot be read, or "skip" it: the next that can takes its place.

    Example:
        >>> len(Pictures(["a.png", "b.png"], None, (32, 32)))
        2

    """

    def __init__(
        self,
        files: list[str],
        labels: Tensor | None,
        shape: tuple[int, int],
        mode: str = "RGB",
        on_error: str = "raise",
    ) -> None:
        self.files = files
        self.labels = labels
        self.shape = shape
        self.mode = mode
        self.on_error = on_error
        self._bad = torch.zeros(len(files), dtype=torch.bool).share_memory_()  # written by the workers

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        for place in range(index, index + len(self.files)):
            place %= len(self.files)
            try:
                image = read_picture(self.files[place], self.shape, self.mode)
            except ValueError as error:
                if self.on_error == "raise":
                    raise ValueError(f"{error}: {ADVICE}") from error
                if not self._bad[place]:
                    self._bad[place] = True
                    warnings.warn(f"{error}: the next file takes its place", stacklevel=2)
                continue
            return image if self.labels is None else (image, int(self.labels[place]))
        raise ValueError(f"none of the {len(self.files)} files can be read, the first is {self.files[0]}")

    def unreadable(self) -> list[str]:
        """The files that could not be read so far, in any worker."""
        return [self.files[place] for place in torch.nonzero(self._bad).flatten().tolist()]


def list_pictures(root: str, extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """All files below a folder with one of the endings, in natural order; hidden files and folders are left out.

    Links to folders are followed, each folder once.
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
                found.append((_natural(os.path.relpath(path, root)), path))
    return [path for _, path in sorted(found)]


def _natural(path: str) -> list[tuple[int, int, str]]:
    """A key that sorts by folder, and numbers by value."""
    pieces = re.split(r"(\d+)", path.replace(os.sep, "\0"))
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]


def read_picture(file: str, shape: tuple[int, int], mode: str = "RGB") -> Tensor:
    """One picture, upright, scaled to cover `shape` and cut to it around the centre: uint8 (C, height, width).

    Raises:
        ValueError: if the file cannot be read as a picture; the sentence names it.

    """
    height, width = shape
    try:
        with Image.open(file) as image:
            orientation = _orientation(image)
            if orientation >= 5:  # lies on its side
                height, width = width, height
            scale = max(height / image.height, width / image.width)
            if image.format == "JPEG" and scale < 0.5:  # let the decoder halve it, never below twice the wanted size
                image.draft(None, (math.ceil(2 * scale * image.width), math.ceil(2 * scale * image.height)))
            picture = _cover(_convert(image, mode), height, width)
    except Exception as error:  # the decoders raise all kinds
        raise ValueError(f"{file} cannot be read as a picture ({type(error).__name__}: {error})") from error
    if orientation in ORIENTATION:
        picture = picture.transpose(ORIENTATION[orientation])
    return pil_to_tensor(picture)


def common_size(files: Sequence[str], on_error: str = "raise") -> tuple[int, int]:
    """Height and width of the pictures if up to 64 of them, evenly spread, agree; else (224, 224). Reads headers only.

    Raises:
        ValueError: if a header cannot be read and on_error="raise".

    """
    sizes = set()
    for place in np.linspace(0, len(files) - 1, min(64, len(files))).astype(int):
        try:
            with Image.open(files[place]) as image:
                width, height = image.size
                sizes.add((width, height) if _orientation(image) >= 5 else (height, width))
        except Exception as error:
            if on_error == "raise":
                raise ValueError(
                    f"{files[place]} cannot be read as a picture ({type(error).__name__}: {error}): {ADVICE}"
                ) from error
    return sizes.pop() if len(sizes) == 1 else (224, 224)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, where PIL's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    across, down = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return image.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, min(left + across, image.width), top + down)
    )
