"""What the commands that look at pictures share: an encoder from a file, how it is fed, and where results may go."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from sslmodules.datamodules.pictures import EXTENSIONS, list_pictures
from sslmodules.distillation.base import SelfDistillation
from sslmodules.encoders import create_encoder, last_map, load_weights, stage_maps
from sslmodules.loading import load, own_checkpoint
from sslmodules.module import SSLModule
from sslmodules.views import normalize


class Looked(NamedTuple):
    """An encoder, how its images are read and made ready, and the method that it is of."""

    encoder: nn.Module
    mode: str  # of PIL
    preprocess: Callable[[Tensor], Tensor]
    module: SSLModule | None

    def to(self, device: torch.device) -> None:
        """Move everything there, and switch to eval mode."""
        if self.module is not None:
            self.module.to(device)
        self.encoder.to(device).eval()

    def map(self, images: Tensor, stage: int | None = None) -> Tensor:
        """Map (B, D, h, w) of images (B, C, H, W): of a stage, or the one that the method ends with."""
        x = self.preprocess(images)
        if stage is not None:
            return stage_maps(self.encoder, x, [stage])[0]
        if self.module is not None and self.encoder is self.module.encoder:
            return self.module.encode_map(x)
        return last_map(self.encoder, x)


def looked_with(ckpt: str, name: str | None) -> Looked:
    """Read an encoder from a checkpoint of this package, or of published weights; of DINO and DINOv2 the teacher.

    Images of any size can be looked at, and those of published weights are normalised by ImageNet's mean and std.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is neither, or an encoder of something else than pictures.
    """
    if own_checkpoint(ckpt) is not None:
        return looked_by(load(ckpt, **({} if name is None else {"encoder": name})), ckpt)
    encoder = load_weights(ckpt, None if name is None else create_encoder(name))
    first = next((p for p in encoder.parameters() if p.ndim == 4), None)
    if first is not None and first.shape[1] != 3:
        raise ValueError(
            f"{ckpt} holds an encoder of {first.shape[1]} channels, and published weights are taken to be of RGB "
            "images, normalised as ImageNet; pass a checkpoint of this package, which says how its images are made"
        )
    return looked_at_rgb(encoder)


def looked_at_rgb(encoder: nn.Module) -> Looked:
    """An encoder that belongs to no method, fed with RGB images normalised as ImageNet."""
    return Looked(encoder, "RGB", lambda x: normalize(x, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), None)


def looked_by(module: SSLModule, ckpt: str) -> Looked:
    """The encoder of a method, which came from a checkpoint."""
    if module.input_kind == "sound" or module.in_channels not in (1, 3):
        raise ValueError(
            f"{ckpt} eats {module.input_kind}s of {module.in_channels} channels; pass the checkpoint of an encoder of "
            "pictures, which have 1 or 3"
        )
    module.eval().size = None  # of the views in training; pictures of any size are looked at
    encoder = module.teacher_encoder if isinstance(module, SelfDistillation) else module.encoder
    return Looked(encoder, "RGB" if module.in_channels == 3 else "L", module.preprocess, module)


def patch_shape(encoder: nn.Module, size: int) -> tuple[int, int]:
    """Height and width of which an image's sides must be multiples; (1, 1) of a convolutional encoder.

    Raises:
        ValueError: images of this ``size`` are smaller.
    """
    patch = getattr(getattr(encoder, "patch_embed", None), "patch_size", (1, 1))
    if size < max(patch):
        raise ValueError(f"--size {size} is smaller than a patch of the encoder ({patch[0]}x{patch[1]} px)")
    return patch


def only_shape(encoder: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that an encoder takes, where it takes one size only."""
    embed: Any = getattr(encoder, "patch_embed", None)
    return tuple(embed.img_size) if getattr(embed, "strict_img_size", False) else None


def listed(option: str, folder: str) -> list[str]:
    """List the pictures in a folder and below it.

    Raises:
        ValueError: there is no such folder, or no picture in it; it was given as ``option``.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{option} {folder}: there is no such folder")
    files = list_pictures(folder)
    if not files:
        raise ValueError(f"{option} {folder}: there is no picture in it or below it ({', '.join(EXTENSIONS)})")
    return files


def check_outside(out: str | Path, option: str, folder: str | Path) -> None:
    """Refuse to write into a folder of inputs, to which the results would be added.

    Raises:
        ValueError: ``out`` lies in ``folder``, which was given as ``option``.
    """
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"--out {out} lies in {option} {folder}, whose pictures it would add to; pass another folder")
