"""From a name to an encoder, and from any encoder to features."""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sslmodules.encoders.convnet import ConvNet
from sslmodules.encoders.vit import moco_v3_vit

OWN = ("conv4", "moco_v3_vit_small", "moco_v3_vit_base")
SMALL_STEM = "-cifar"


def create_encoder(name: str, in_channels: int = 3, image_size: int | None = None, **kwargs: Any) -> nn.Module:
    """Build an encoder without a classifier.

    Args:
        name: any model name of timm; a timm ResNet with ``-cifar`` behind it for the 3x3, stride-1 stem without
            pooling that the field uses at 32 px; ``"conv4"``, four small convolutional stages
            (:class:`ConvNet`); ``"moco_v3_vit_small"`` or ``"moco_v3_vit_base"``.
        in_channels: channels of the images.
        image_size: side of the images in pixels, for models that are built for one size; None leaves their own.
            Transformers take other sizes too: their positions are interpolated.
        kwargs: further arguments of the model, such as ``pretrained=True`` (downloads) or ``widths`` of ``conv4``.

    Raises:
        ValueError: no such model; the message has the nearest names.

    >>> create_encoder("resnet18-cifar")(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 512])
    """
    if name == "conv4":
        return ConvNet(in_channels, **kwargs)
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    if name in OWN:
        return moco_v3_vit(name.rsplit("_", 1)[1], in_chans=in_channels, **size, **kwargs)
    base = name.removesuffix(SMALL_STEM)
    if not timm.is_model(base.split(".")[0]):
        near = difflib.get_close_matches(name, [*OWN, "resnet18-cifar", "resnet50-cifar", *timm.list_models()], n=4)
        raise ValueError(
            f"there is no encoder {name!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "")
            + " Any name of timm.list_models() works, or pass an nn.Module"
        )
    if base.startswith("vit_"):
        kwargs = {"dynamic_img_size": True, **size, **kwargs}
    encoder: Any = timm.create_model(base, num_classes=0, in_chans=in_channels, **kwargs)
    if name.endswith(SMALL_STEM):
        if not isinstance(getattr(encoder, "conv1", None), nn.Conv2d) or not hasattr(encoder, "maxpool"):
            raise ValueError(f"{name!r}: only ResNets with a 7x7 stem have the {SMALL_STEM!r} form, {base!r} is none")
        stem = nn.Conv2d(in_channels, encoder.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        encoder.conv1, encoder.maxpool = stem, nn.Identity()
    return encoder


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
    side = image_size or 64
    flags = {m: m.training for m in encoder.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            encoder.eval()
            return pool(encoder(torch.zeros(1, in_channels, side, side))).shape[1]
    except Exception as error:
        raise ValueError(
            f"the length of {type(encoder).__name__}'s features is unknown: it has no attribute num_features and fails "
            f"on an empty image of {in_channels} channels and {side} px ({error}); set encoder.num_features"
        ) from error
    finally:
        for module, training in flags.items():
            module.training = training


def stage_maps(encoder: nn.Module, x: Tensor, stages: Sequence[int]) -> list[Tensor]:
    """Maps of chosen stages, (B, C, H, W) each, in the order asked for.

    Args:
        encoder: a timm model, a :class:`ConvNet`, an ``nn.Sequential`` (each child is a stage), or any module with a
            method ``forward_intermediates``.
        x: what the encoder eats, (B, C, H, W).
        stages: indices from the first stage on; negative ones count from the last.

    Raises:
        ValueError: the encoder offers no stages, or not that many.

    >>> [tuple(m.shape) for m in stage_maps(ConvNet(), torch.zeros(2, 3, 8, 8), [0, -1])]
    [(2, 32, 8, 8), (2, 256, 1, 1)]
    """
    if isinstance(encoder, ConvNet):
        maps = encoder.forward_intermediates(x)
    elif hasattr(encoder, "forward_intermediates"):
        maps = encoder.forward_intermediates(x, intermediates_only=True)  # type: ignore[operator]
    elif isinstance(encoder, nn.Sequential):
        maps = []
        for stage in encoder:
            x = stage(x)
            maps.append(x)
    else:
        raise ValueError(f"{type(encoder).__name__} offers no stages; give it a method forward_intermediates(x)")
    if any(not -len(maps) <= s < len(maps) for s in stages):
        raise ValueError(f"the stages {list(stages)} were asked for, {type(encoder).__name__} has {len(maps)}")
    return [maps[s] for s in stages]
