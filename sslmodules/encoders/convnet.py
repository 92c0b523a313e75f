"""A small convolutional network for small images and short runs."""

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Stages of 3x3 convolution, batch norm and ReLU; each but the first halves the side. Any image size.

    Args:
        in_channels: channels of the images.
        widths: channels of the stages; the last is the length of the representation.

    >>> import torch
    >>> ConvNet(in_channels=3, widths=(16, 32))(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 32])
    """

    def __init__(self, in_channels: int = 3, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        before = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(inplace=True),
            )
            for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.num_features = widths[-1]

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, (B, C, H, W) each, from fine to coarse."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, D): the mean of the last map."""
        return self.forward_intermediates(x)[-1].mean((2, 3))
