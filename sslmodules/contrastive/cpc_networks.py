"""The parts that CPC is put together from: encoders, and context networks that see the past alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from timm.layers import create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F


class AudioEncoder(nn.Module):
    """Strided convolutions over a waveform, each with ReLU: one latent every 160 samples (CPC, section 3.1).

    Convolutions are padded so that the latents are as many as the strides say, 128 of 20,480 samples.

    Args:
        in_channels: of the sounds.
        widths: channels of the layers; the last is the length of the latents.
        kernels: their kernels, in samples of what comes in.
        strides: their strides.
        padding: whether to pad; without, the same sounds give 126 latents.
        batch_norm: between convolution and ReLU. The paper does not speak of it; its authors' later code trains the
            paper's model with it.

    Raises:
        ValueError: not as many widths, kernels and strides.

    >>> import torch
    >>> AudioEncoder(widths=(8,) * 5)(torch.zeros(2, 1, 20480)).shape
    torch.Size([2, 128, 8])
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (512, 512, 512, 512, 512),
        kernels: Sequence[int] = (10, 8, 4, 4, 4),
        strides: Sequence[int] = (5, 4, 2, 2, 2),
        padding: bool = True,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if not len(widths) == len(kernels) == len(strides):
            raise ValueError(
                f"there are {len(widths)} widths, {len(kernels)} kernels and {len(strides)} strides; pass one of each "
                "for every layer"
            )
        before = [in_channels, *widths[:-1]]
        # Half of what a kernel is longer than its stride, rounded up: as many latents as the strides say.
        pads = [-(-(k - s) // 2) if padding else 0 for k, s in zip(kernels, strides, strict=True)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(a, b, kernel, stride, pad, bias=not batch_norm),
                    nn.BatchNorm1d(b) if batch_norm else nn.Identity(),
                    nn.ReLU(inplace=True),
                )
                for a, b, kernel, stride, pad in zip(before, widths, kernels, strides, pads, strict=True)
            )
        )
        self.num_features = widths[-1]

    def length(self, samples: int) -> int:
        """How many latents that many samples give."""
        for layer in self.layers:
            convolution: Any = layer[0]  # type: ignore[index]
            samples = (samples + 2 * convolution.padding[0] - convolution.kernel_size[0]) // convolution.stride[0] + 1
        return max(0, samples)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, samples) waveforms to (B, T, D) latents.

        Raises:
            ValueError: so few samples that they give no latent.
        """
        if self.length(x.shape[2]) == 0:
            raise ValueError(f"sounds of {x.shape[2]} samples are too short for one latent; pass longer ones")
        return self.layers(x).transpose(1, 2)


def patch_resnet(in_channels: int = 3, layers: Sequence[int] = (3, 4, 23)) -> nn.Module:
    """ResNet-v2-101 up to its third stage and without batch norm: (B, C, H, W) patches to (B, 1024) (CPC, section 3.3).

    Statistics of the batch would tell apart patches of one image from those of others without looking at them.

    Args:
        in_channels: of the images.
        layers: blocks of the stages.

    >>> import torch
    >>> patch_resnet(layers=(1,))(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 256])
    """
    widths = tuple(256 * 2**i for i in range(len(layers)))
    return ResNetV2(
        list(layers), widths, 0, in_channels, conv_layer=create_conv2d, norm_layer=_activation, zero_init_last=True
    )


def _activation(channels: int, apply_act: bool = True, **_: Any) -> nn.Module:
    """What stands in timm's blocks in the place of a norm with its activation."""
    return nn.ReLU() if apply_act else nn.Identity()


class Recurrent(nn.Module):
    """Context by a recurrent network (CPC, section 3.1): (B, T, D) latents to (B, T, dim).

    Args:
        in_features: D.
        dim: length of the contexts.
        layers: number of layers.
        cell: ``"gru"`` or ``"lstm"``.

    >>> import torch
    >>> Recurrent(8, dim=4)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, in_features: int, dim: int = 256, layers: int = 1, cell: Literal["gru", "lstm"] = "gru") -> None:
        super().__init__()
        self.network = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](in_features, dim, layers, batch_first=True)
        self.num_features = dim

    def forward(self, z: Tensor) -> Tensor:
        """Contexts of latents; that of t has seen latents 0 to t."""
        return self.network(z)[0]


class CausalConvolutions(nn.Module):
    """Context by dilated convolutions that are padded on the left alone: (B, T, D) latents to (B, T, dim).

    Layer l looks back by ``kernel - 1`` times ``2 ** l`` latents; each after the first adds to what came in.

    Args:
        in_features: D.
        dim: length of the contexts.
        layers: number of layers.
        kernel: of each.

    >>> import torch
    >>> CausalConvolutions(8, dim=4)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, in_features: int, dim: int = 256, layers: int = 4, kernel: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(dim if i else in_features, dim, kernel, dilation=2**i) for i in range(layers)
        )
        self.num_features = dim

    def forward(self, z: Tensor) -> Tensor:
        """Contexts of latents; that of t has seen latents up to t."""
        x = z.transpose(1, 2)  # (B, D, T)
        layer: Any
        for i, layer in enumerate(self.layers):
            back = (layer.kernel_size[0] - 1) * layer.dilation[0]
            y = F.relu(layer(F.pad(x, (back, 0))))
            x = y + x if i else y
        return x.transpose(1, 2)


class MaskedRows(nn.Module):
    """Context of a grid of patches in the manner of PixelCNN: (B, rows, columns, D) latents to the same with ``dim``.

    Residual blocks in which a row reaches its neighbours and the row below, and never one above.

    Args:
        in_features: D.
        dim: length of the contexts; where it is not D, a 1x1 convolution comes first.
        layers: number of blocks.
        hidden: channels inside them.

    >>> import torch
    >>> MaskedRows(8, dim=4)(torch.zeros(2, 7, 7, 8)).shape
    torch.Size([2, 7, 7, 4])
    """

    def __init__(self, in_features: int, dim: int | None = None, layers: int = 5, hidden: int = 256) -> None:
        super().__init__()
        dim = dim or in_features
        self.embed = nn.Conv2d(in_features, dim, 1) if dim != in_features else nn.Identity()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, hidden, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)),  # one row above
                nn.Conv2d(hidden, hidden, (2, 1)),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, dim, 1),
            )
            for _ in range(layers)
        )
        self.num_features = dim

    def forward(self, z: Tensor) -> Tensor:
        """Contexts of latents; those of row i have seen rows 0 to i."""
        x = self.embed(z.permute(0, 3, 1, 2))  # (B, dim, rows, columns)
        for block in self.blocks:
            x = x + block(x)
        return x.permute(0, 2, 3, 1)


ENCODERS: dict[str, Callable[..., nn.Module]] = {"cpc_audio": AudioEncoder, "cpc_resnet": patch_resnet}
CONTEXTS: dict[str, Callable[..., nn.Module]] = {
    "gru": Recurrent,
    "lstm": partial(Recurrent, cell="lstm"),
    "convolution": CausalConvolutions,
    "masked_rows": MaskedRows,
}
