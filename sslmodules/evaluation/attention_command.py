"""The command ``sslmodules attention``: what an encoder looks at in a person's own pictures."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from sslmodules.datamodules.pictures import picture_size, read_picture
from sslmodules.encoders import ViT, last_map, stage_maps
from sslmodules.evaluation.attention import (
    activation_attention,
    attention_tiles,
    class_attention,
    colors,
    enlarged,
    principal_axes,
    projected,
    shows_attention,
)
from sslmodules.evaluation.looking import check_outside, listed, looked_with, only_shape, patch_shape
from sslmodules.tiles import Tiles, grid
from sslmodules.views import to_float

SIZE = 480  # px, as in the papers' figures
LONGEST = 2  # times the shorter side: attention takes memory by the square of the number of patches


def write_attention(
    ckpt: str, images: str, out: str, size: int | None = None, block: int = -1, encoder: str | None = None
) -> list[Path]:
    """Write what an encoder looks at in every picture of a folder, as PNG files named after the pictures.

    Of a ViT with a class token: the picture, the mean attention of the class token over the heads, every head, and the
    smallest set of patches that holds 60 % of the mean; and in a second file ``...-pca.png`` the first three principal
    components of the patches of all pictures as colours. Of another encoder: the picture, and where each of its stages
    is active. Files are never written over.

    Pictures are resized to a shorter side of ``size`` and cut around the centre to a multiple of the patch, and to at
    most twice as long as wide; for an encoder that takes one size only, to that. They are normalised as the method
    does it, or, for published weights, by ImageNet's mean and standard deviation. A DINO or DINOv2 shows its teacher,
    as in the papers. It runs on a GPU where there is one, picture by picture.

    Args:
        ckpt: a checkpoint of this package, or a file of published weights (see sslmodules.encoders.load_weights).
        images: folder of pictures, with the folders below it.
        out: folder to write into; it is made where it is missing.
        size: shorter side of the pictures in pixels; by default that of the pictures of the training, or 480 where the
            file does not tell it. A larger one shows finer maps.
        block: of a ViT, whose attention is shown; negative ones count from the last.
        encoder: name of the encoder, where the file does not tell it (see sslmodules.encoders.create_encoder).

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a file that is no checkpoint, no such folder, no picture in it or one that cannot be read, a size
            below a patch, no such block, or a file that would be written over.
    """
    looked = looked_with(ckpt, encoder)
    inputs = listed("--images", images)
    trained = None if looked.module is None else looked.module.input_format
    if size is None and trained is not None:
        size = min(trained.shape[-2:])
        print(f"pictures are read at {size} px, as in the training of {ckpt}; --size gives another")
    size = size or SIZE
    if shows_attention(looked.encoder) and not -len(looked.encoder.blocks) <= block < len(looked.encoder.blocks):
        raise ValueError(f"--block {block}: the encoder has {len(looked.encoder.blocks)}, the first of which is 0")
    kinds = ["", "-pca"] if isinstance(looked.encoder, ViT) else [""]
    outputs = _named(inputs, Path(images), Path(out), kinds)
    shapes = [_shape(file, size, looked.encoder) for file in inputs]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    looked.to(device)

    def pictures() -> Iterator[tuple[Tensor, Tensor]]:
        """Each picture in [0, 1], (1, C, H, W), and what the encoder eats of it."""
        for file, (resized, cut) in zip(inputs, shapes, strict=True):
            picture = _center(read_picture(file, resized, looked.mode), cut)[None].to(device)
            yield to_float(picture), looked.preprocess(picture)

    Path(out).mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for (picture, x), names in zip(pictures(), outputs, strict=True):
            _save(_tiles(looked.encoder, picture, x, block), names[0])
        if isinstance(looked.encoder, ViT):
            _write_colors(looked.encoder, pictures, [names[1] for names in outputs])
    written = [name for names in outputs for name in names]
    print(f"{len(written)} files of {len(inputs)} pictures in {out}")
    return written


def _named(inputs: Sequence[str], images: Path, out: Path, kinds: Sequence[str]) -> list[list[Path]]:
    """The files to write for each picture, one of each kind."""
    check_outside(out, "--images", images)
    relative = [Path(os.path.relpath(file, images)) for file in inputs]
    outputs = [[out / r.with_name(f"{r.stem}{kind}.png") for kind in kinds] for r in relative]
    if len({str(name).lower() for names in outputs for name in names}) < len(kinds) * len(inputs):
        outputs = [[out / r.with_name(f"{r.name}{kind}.png") for kind in kinds] for r in relative]  # 1.jpg and 1.png
    present = next((name for names in outputs for name in names if name.exists()), None)
    if present is not None:
        raise ValueError(f"{present} exists and would be written over; pass another --out, or remove it")
    return outputs


def _shape(file: str, size: int, encoder: nn.Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width to resize a picture to, and those to cut out of its middle then."""
    height, width = picture_size(file)
    only = only_shape(encoder)
    if only is not None:
        return only, only
    patch = patch_shape(encoder, size)
    scale = size / min(height, width)
    height, width = min(round(height * scale), LONGEST * size), min(round(width * scale), LONGEST * size)
    return (height, width), (height // patch[0] * patch[0], width // patch[1] * patch[1])


def _center(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    top, left = (picture.shape[1] - shape[0]) // 2, (picture.shape[2] - shape[1]) // 2
    return picture[:, top : top + shape[0], left : left + shape[1]]


def _tiles(encoder: nn.Module, picture: Tensor, x: Tensor, block: int) -> Tensor:
    """(1, columns, C, H, W)."""
    if shows_attention(encoder):
        return attention_tiles(picture, class_attention(encoder, x, block))
    maps = [enlarged(activation_attention(m)[:, None], *x.shape[-2:]) for m in stage_maps(encoder, x)]
    return torch.stack([picture, *(m.expand_as(picture) for m in maps)], 1)


def _write_colors(
    encoder: nn.Module, pictures: Callable[[], Iterator[tuple[Tensor, Tensor]]], names: Sequence[Path]
) -> None:
    """Write the principal components of all patches of all pictures as colours, beside each picture.

    The features are computed twice, for the axes and then for the places along them, so that they need not be kept.
    """
    mean, axes = principal_axes(last_map(encoder, x)[0].flatten(1).T for _, x in pictures())
    scores = [projected(last_map(encoder, x), mean, axes) for _, x in pictures()]  # (1, 3, h, w) each
    flat = torch.cat([s.flatten(2) for s in scores], 2)  # (1, 3, patches)
    least, most = flat.amin((0, 2)), flat.amax((0, 2))
    for (picture, _), score, name in zip(pictures(), scores, names, strict=True):
        shown = enlarged(colors(score, least, most), *picture.shape[-2:])
        _save(torch.stack([picture.cpu().expand_as(shown), shown], 1), name)


def _save(tiles: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid(Tiles(tiles), min_side=1), path)
