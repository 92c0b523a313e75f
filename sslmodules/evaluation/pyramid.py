"""From the maps of any encoder to a pyramid of maps of one width, in which a detector looks for large and small."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

COARSEST = "pool"  # torchvision's name of the last map, from which no regions are cut


class SimplePyramid(nn.Module):
    """Pyramid from the last map of a transformer (Li et al. 2022, ViTDet, section 3), by deconvolution and pooling.

    Its maps have 4, 2, 1, 1/2 and 1/4 times the side of the one map: strides 4 to 64 with patches of 16.

    Args:
        in_channels: D of the map.
        width: channels of the pyramid's maps.

    >>> import torch
    >>> pyramid = SimplePyramid(24, width=8)
    >>> [tuple(m.shape[1:]) for m in pyramid([torch.zeros(1, 24, 4, 6)]).values()]
    [(8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3), (8, 1, 2)]
    """

    def __init__(self, in_channels: int, width: int = 256) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        scales = [
            nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, 2),
                LayerNorm2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ),
            nn.ConvTranspose2d(in_channels, half, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(channels, width, 1, bias=False),
                LayerNorm2d(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                LayerNorm2d(width),
            )
            for scale, channels in zip(scales, (quarter, half, in_channels, in_channels), strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        """Maps from fine to coarse, by name, of the last of ``maps``."""
        levels = OrderedDict((str(i), level(maps[-1])) for i, level in enumerate(self.levels))
        levels[COARSEST] = F.max_pool2d(levels["3"], 1, 2)
        return levels


class StagePyramid(FeaturePyramidNetwork):
    """Pyramid from the stages of a convolutional encoder (Lin et al. 2017), and one map more, of half the last's side.

    Args:
        in_channels: of the stages' maps, from fine to coarse.
        width: channels of the pyramid's maps.

    >>> import torch
    >>> pyramid = StagePyramid([4, 6], width=8)
    >>> [tuple(m.shape[1:]) for m in pyramid([torch.zeros(1, 4, 8, 8), torch.zeros(1, 6, 4, 4)]).values()]
    [(8, 8, 8), (8, 4, 4), (8, 2, 2)]
    """

    def __init__(self, in_channels: Sequence[int], width: int = 256) -> None:
        super().__init__(list(in_channels), width, LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        """Maps from fine to coarse, by name."""
        return super().forward(OrderedDict((str(i), m) for i, m in enumerate(maps)))


class PyramidBackbone(nn.Module):
    """What torchvision's detectors take for a backbone: an encoder and the pyramid on it.

    Args:
        read: gives the encoder's maps of images (B, C, H, W), from fine to coarse; the encoder is no part of this.
        pyramid: gives maps by name of these.
        width: channels of the pyramid's maps.
    """

    def __init__(self, read: Callable[[Tensor], list[Tensor]], pyramid: nn.Module, width: int) -> None:
        super().__init__()
        self.read = read
        self.pyramid = pyramid
        self.out_channels = width

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Maps from fine to coarse, by name."""
        return self.pyramid(self.read(x))


def is_plain(maps: Sequence[Tensor]) -> bool:
    """Whether an encoder keeps the side of its maps from stage to stage, as a transformer does.

    >>> import torch
    >>> is_plain([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)])
    False
    """
    return len(maps) < 2 or maps[-1].shape[2:] == maps[-2].shape[2:]
