"""From the maps of a clip's frames to embeddings that know of each other and of their place."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class ClipConv3d(nn.Conv3d):
    """A 3x3x3 convolution over (B, C, T, H, W) that keeps the shape; the first and the last frame are repeated.

    So one frame alone is read as a clip that stands still, and not as one between black frames.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=(0, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H, W)."""
        return super().forward(torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2))


class ClipHead(nn.Module):
    """The position in the frame beside each feature, then 3-D convolutions (Vondrick et al. 2018).

    Args:
        dim: channels of the encoder's maps.
        out: channels of the embeddings.
        width: channels inside.
        depth: number of convolutions, at least 1; all but the last are followed by batch norm and ReLU.

    Raises:
        ValueError: a depth below 1.

    >>> ClipHead(dim=32, out=8, width=16, depth=2)(torch.zeros(2, 4, 32, 5, 6)).shape
    torch.Size([2, 4, 8, 5, 6])
    """

    def __init__(self, dim: int, out: int = 64, width: int = 256, depth: int = 5) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"the depth of the head is {depth}; expected at least 1 convolution")
        widths = [dim + 2, *[width] * (depth - 1)]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [ClipConv3d(a, b, bias=False), nn.BatchNorm3d(b), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, ClipConv3d(widths[-1], out))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, D, h, w) to (B, T, d, h, w)."""
        b, t, _, h, w = maps.shape
        rows, columns = (torch.linspace(-1, 1, side, device=maps.device, dtype=maps.dtype) for side in (h, w))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, h, w)
        x = torch.cat([maps, places.expand(b, t, -1, -1, -1)], 2)  # (B, T, D + 2, h, w)
        return self.layers(x.transpose(1, 2)).transpose(1, 2)
