"""From a name to an encoder."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sslmodules.encoders.convnet import ConvNet
from sslmodules.encoders.moco_v3_vit import moco_v3_vit
from sslmodules.encoders.vit import ViT

OWN = ("conv4", "moco_v3_vit_small", "moco_v3_vit_base")
SMALL_STEM = "-cifar"
ANY_SIZE = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")  # files of timm with dynamic_img_size
OF_VIT = ("interpolation", "mask_token", "uniform_drop_path")
OF_WEIGHTS = ("pretrained", "checkpoint_path")

_weights_follow = ContextVar("_weights_follow", default=False)


@contextmanager
def without_pretrained_weights() -> Iterator[None]:
    """Build encoders whose weights are loaded next: ``pretrained=True`` downloads nothing in here."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def create_encoder(name: str, in_channels: int = 3, image_size: int | None = None, **kwargs: Any) -> nn.Module:
    """Build an encoder without a classifier.

    Args:
        name: any model name of timm; a timm ResNet with ``-cifar`` behind it for the 3x3, stride-1 stem without
            pooling that the field uses at 32 px; ``"conv4"``, four small convolutional stages
            (:class:`ConvNet`); ``"moco_v3_vit_small"`` or ``"moco_v3_vit_base"``.
        in_channels: channels of the images.
        image_size: side of the images in pixels, for models that are built for one size; None leaves their own.
            Transformers take other sizes too: their positions are interpolated.
        kwargs: further arguments of the model, such as ``pretrained=True`` (downloads) or ``widths`` of ``conv4``. What
            timm builds as its ``VisionTransformer`` is a :class:`ViT` and takes also ``interpolation``, ``mask_token``
            and ``uniform_drop_path``.

    Raises:
        ValueError: no such model; the message has the nearest names. Or arguments of :class:`ViT` for what timm
            builds as something else.

    >>> import torch
    >>> create_encoder("resnet18-cifar")(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 512])
    """
    if _weights_follow.get():
        kwargs = {key: value for key, value in kwargs.items() if key not in OF_WEIGHTS}
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
    own = {key: kwargs.pop(key) for key in OF_VIT if key in kwargs}
    family = timm.model_entrypoint(base.split(".")[0]).__module__.removeprefix("timm.models.")
    if family in ANY_SIZE:
        kwargs = {"dynamic_img_size": True, **size, **kwargs}
    elif base.startswith("vit_"):
        kwargs = {**size, **kwargs}
    encoder: Any = timm.create_model(base, num_classes=0, in_chans=in_channels, **kwargs)
    if type(encoder) is VisionTransformer:
        encoder = ViT.of(encoder, **own)
    elif own:
        raise ValueError(
            f"timm builds {base!r} as {type(encoder).__name__}, which does not take {', '.join(own)}; take another "
            "vit_... or leave that out"
        )
    if name.endswith(SMALL_STEM):
        if not isinstance(getattr(encoder, "conv1", None), nn.Conv2d) or not hasattr(encoder, "maxpool"):
            raise ValueError(f"{name!r}: only ResNets with a 7x7 stem have the {SMALL_STEM!r} form, {base!r} is none")
        stem = nn.Conv2d(in_channels, encoder.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        encoder.conv1, encoder.maxpool = stem, nn.Identity()
    return encoder
