"""From any encoder to features: vectors, the last map, the maps of its stages."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sslmodules.encoders.convnet import ConvNet


def pool(features: Tensor) -> Tensor:
    """Whatever an encoder gives as one vector an image: (B, D) as it is, the mean of (B, N, D) or of (B, D, H, W).

    Raises:
        ValueError: another number of dimensions, or no tensor.

    >>> pool(torch.ones(2, 5, 4, 4)).shape
    torch.Size([2, 5])
    """
    if not isinstance(features, Tensor) or features.ndim not in (2, 3, 4):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the encoder gave {got}, expected a tensor (B, D), tokens (B, N, D) or a map (B, D, H, W)")
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def feature_dim(encoder: nn.Module, in_channels: int = 3, image_size: int | None = None) -> int:
    """Length of the pooled representation: the encoder's ``num_features``, else found by encoding an empty image.

    Raises:
        ValueError: the encoder has no ``num_features`` and refuses an empty image.

    >>> feature_dim(nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU()))
    7
    """
    known = getattr(encoder, "num_features", None)
    if isinstance(known, int):
        return getattr(encoder, "head_hidden_size", None) or known
    try:
        with _tried(encoder, in_channels, image_size) as empty:
            return pool(encoder(empty)).shape[1]
    except Exception as error:
        raise ValueError(
            f"the length of {type(encoder).__name__}'s features is unknown: it has no attribute num_features and fails "
            f"on an empty image of {in_channels} channels and {image_size or 64} px ({error}); set encoder.num_features"
        ) from error


def last_map(encoder: nn.Module, x: Tensor) -> Tensor:
    """Map (B, D, H, W) that the encoder ends with, before it is pooled; class and register tokens are left out.

    Args:
        encoder: a timm model, a :class:`ConvNet`, or any module that gives a map or as many tokens as a square has.
        x: what the encoder eats, (B, C, H, W).

    Raises:
        ValueError: the encoder gives neither.

    >>> last_map(ConvNet(), torch.zeros(2, 3, 16, 24)).shape
    torch.Size([2, 256, 2, 3])
    """
    if isinstance(encoder, ConvNet):
        return encoder.forward_intermediates(x)[-1]
    out = encoder.forward_features(x) if hasattr(encoder, "forward_features") else encoder(x)  # type: ignore[operator]
    if isinstance(out, Tensor) and out.ndim == 4:
        return out.permute(0, 3, 1, 2) if getattr(encoder, "output_fmt", "NCHW") == "NHWC" else out
    if isinstance(out, Tensor) and out.ndim == 3:
        tokens = out[:, getattr(encoder, "num_prefix_tokens", 0) :]  # (B, N, D)
        patch = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
        side = math.isqrt(tokens.shape[1])
        h, w = (side, side) if patch is None else (x.shape[2] // patch[0], x.shape[3] // patch[1])
        if h * w == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (h, w))
    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise ValueError(
        f"{type(encoder).__name__} gave {got}, and a map (B, D, H, W) or a square of tokens (B, N, D) is needed; "
        "leave out its pooling, or give it a method forward_features that does"
    )


def map_shape(encoder: nn.Module, in_channels: int = 3, image_size: int | None = None) -> tuple[int, int, int]:
    """Shape (D, H, W) of the last map of a square image, found by encoding an empty one.

    Raises:
        ValueError: the encoder refuses it, or gives no map.

    >>> map_shape(ConvNet(), image_size=32)
    (256, 4, 4)
    """
    try:
        with _tried(encoder, in_channels, image_size) as empty:
            d, h, w = last_map(encoder, empty).shape[1:]
    except Exception as error:
        raise ValueError(
            f"{type(encoder).__name__} gives no map for an image of {in_channels} channels and {image_size or 64} px: "
            f"{error}"
        ) from error
    return d, h, w


@contextmanager
def _tried(encoder: nn.Module, in_channels: int, image_size: int | None) -> Iterator[Tensor]:
    """An empty image, and passes that leave no trace in the encoder or the random numbers."""
    flags = {m: m.training for m in encoder.modules()}
    side = image_size or 64
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            encoder.eval()
            yield torch.zeros(1, in_channels, side, side)
    finally:
        for module, training in flags.items():
            module.training = training


def stage_maps(encoder: nn.Module, x: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
    """Maps of chosen stages, (B, C, H, W) each, in the order asked for.

    Args:
        encoder: a timm model, a :class:`ConvNet`, an ``nn.Sequential`` (each child is a stage), or any module with a
            method ``forward_intermediates``.
        x: what the encoder eats, (B, C, H, W).
        stages: indices from the first stage on; negative ones count from the last; None takes all.

    Raises:
        ValueError: the encoder offers no stages, or not that many.

    >>> [tuple(m.shape) for m in stage_maps(ConvNet(), torch.zeros(2, 3, 8, 8), [0, -1])]
    [(2, 32, 8, 8), (2, 256, 1, 1)]
    """
    if isinstance(encoder, nn.Sequential):
        maps = []
        for stage in encoder:
            x = stage(x)
            maps.append(x)
    elif hasattr(encoder, "forward_intermediates"):
        timms = hasattr(encoder, "forward_features")
        maps = encoder.forward_intermediates(x, intermediates_only=True) if timms else encoder.forward_intermediates(x)  # type: ignore[operator]
    else:
        raise ValueError(f"{type(encoder).__name__} offers no stages; give it a method forward_intermediates(x)")
    if stages is None:
        return list(maps)
    if any(not -len(maps) <= s < len(maps) for s in stages):
        raise ValueError(f"the stages {list(stages)} were asked for, {type(encoder).__name__} has {len(maps)}")
    return [maps[s] for s in stages]
