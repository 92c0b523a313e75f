"""Picture files: decoded upright, cut to one size."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from sslmodules.datamodules.files import Files, common, list_files

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ORIENTATION = {  # the EXIF tag's values, and what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Pictures(Files):
    """Picture files as uint8 tensors (C, H, W) of one size, or pairs with a label.

    Args:
        files: paths.
        labels: (len(files),) or None.
        shape: height and width.
        mode: "RGB" or "L".
        on_error: "raise" a ValueError for a file that cannot be read, or "skip" it, see `Files`.

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
        super().__init__(files, labels, on_error)
        self.shape = shape
        self.mode = mode

    def read(self, file: str, draw: int) -> Tensor:
        """One picture (C, H, W)."""
        return read_picture(file, self.shape, self.mode)


def list_pictures(root: str, extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """All pictures below a folder; see :func:`~sslmodules.datamodules.files.list_files`."""
    return list_files(root, extensions)


def read_picture(file: str, shape: tuple[int, int], mode: str = "RGB", at: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """One picture, upright, scaled to cover `shape` and cut to it, by default around the centre: uint8 (C, *shape).

    Raises:
        ValueError: if the file cannot be read as a picture; the sentence names it.

    """
    try:
        with Image.open(file) as image:
            height, width = reversed(shape) if _orientation(image) >= 5 else shape  # as it lies in the file
            scale = max(height / image.height, width / image.width)
            if image.format == "JPEG" and scale < 0.5:  # let the decoder halve it, never below twice the wanted size
                image.draft(None, (math.ceil(2 * scale * image.width), math.ceil(2 * scale * image.height)))
            return cut_picture(image, shape, mode, at)
    except Exception as error:  # the decoders raise all kinds
        raise ValueError(f"{file} cannot be read as a picture ({type(error).__name__}: {error})") from error


def cut_picture(
    image: Image.Image, shape: tuple[int, int], mode: str = "RGB", at: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """As :func:`read_picture`, of a picture that is open already.

    Example:
        >>> cut_picture(Image.new("L", (30, 20)), (8, 8)).shape
        torch.Size([3, 8, 8])

    """
    orientation = _orientation(image)
    height, width = reversed(shape) if orientation >= 5 else shape  # of one that lies on its side
    picture = cover(_convert(image, mode), height, width, at)
    if orientation in ORIENTATION:
        picture = picture.transpose(ORIENTATION[orientation])
    return pil_to_tensor(picture)


def picture_size(file: str) -> tuple[int, int]:
    """Height and width of a picture, upright. Reads the header only.

    Raises:
        ValueError: if it cannot be read; the sentence names the file.

    """
    try:
        with Image.open(file) as image:
            return upright_size(image)
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a picture ({type(error).__name__}: {error})") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an open picture once it is turned upright."""
    return image.size if _orientation(image) >= 5 else (image.height, image.width)


def height_and_width(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of a square given by its side, or of a pair as it is.

    Example:
        >>> height_and_width(32), height_and_width((20, 30)), height_and_width(None)
        ((32, 32), (20, 30), None)

    """
    if size is None or isinstance(size, int):
        return None if size is None else (size, size)
    height, width = size
    return height, width


def common_size(
    files: Sequence[str], on_error: str = "raise", size_of: Callable[[str], tuple[int, int]] = picture_size
) -> tuple[int, int]:
    """Height and width of the files if up to 64 of them, evenly spread, agree; else (224, 224).

    Raises:
        ValueError: if one of them cannot be read and on_error="raise".

    """
    return common(files, size_of, (224, 224), on_error)


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


def cover(image: Image.Image, height: int, width: int, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """A picture scaled (antialiased) to cover `height` and `width`, and cut to them.

    `at` says where, from 0 at the top and at the left to 1 at the bottom and at the right.
    """
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    across, down = min(width / scale, image.width), min(height / scale, image.height)
    top, left = at[0] * (image.height - down), at[1] * (image.width - across)
    return image.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, min(left + across, image.width), top + down)
    )
