"""From an encoder's map to a map of pixels."""

import math

from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """A 3x3 convolution, then transposed convolutions that double the side, then a 1x1 convolution.

    Args:
        dim: channels of the map that comes in.
        out: channels of the map that goes out.
        enlarge: factor between the sides of the two, rounded to a power of 2; at 1 or less nothing is doubled.
        width: channels of the first layer; each doubling halves them, down to ``min_width``.
        min_width: fewest channels of an inner layer.

    >>> import torch
    >>> Decoder(dim=32, out=3, enlarge=4, width=16)(torch.zeros(2, 32, 8, 8), (32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, dim: int, out: int, enlarge: float, width: int = 256, min_width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1, bias=False), *_norm(width)]
        for _ in range(max(0, round(math.log2(enlarge)))):
            narrow = max(width // 2, min(width, min_width))
            layers += [nn.ConvTranspose2d(width, narrow, 4, stride=2, padding=1, bias=False), *_norm(narrow)]
            width = narrow
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, D, h, w) to (B, out, *size); where the doublings do not meet the size, what is left is interpolated."""
        x = self.layers(x)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.last(x)


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
