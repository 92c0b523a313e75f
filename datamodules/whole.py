"""Whole pictures, each in its own shape, for what is predicted of places in them."""

from torch import Tensor

from sslmodules.datamodules.files import Files
from sslmodules.datamodules.pictures import picture_size, read_picture


class WholePictures(Files):
    """Picture files as uint8 tensors (C, H, W), nothing cut off; a batch holds one, because shapes differ.

    Args:
        files: paths.
        labels: (len(files),) or None.
        side: shorter side in pixels that pictures are scaled to (antialiased); None leaves them at their own size.
        mode: "RGB" or "L".
        on_error: "raise" a ValueError for a file that cannot be read, or "skip" it, see `Files`.

    Example:
        >>> len(WholePictures(["a.png", "b.png"], None))
        2

    """

    def __init__(
        self,
        files: list[str],
        labels: Tensor | None,
        side: int | None = None,
        mode: str = "RGB",
        on_error: str = "raise",
    ) -> None:
        super().__init__(files, labels, on_error)
        self.instead = "nothing"
        self.side = side
        self.mode = mode

    def read(self, file: str, draw: int) -> Tensor:
        """One picture (C, H, W)."""
        size = picture_size(file)
        return read_picture(file, size if self.side is None else scaled(size, self.side), self.mode)


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side is scaled to `side`.

    Example:
        >>> scaled((30, 40), 15), scaled((300, 200), 50)
        ((15, 20), (75, 50))

    """
    factor = side / min(size)
    return round(factor * size[0]), round(factor * size[1])
