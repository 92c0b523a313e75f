"""The command ``sslmodules pictures``: what a trained method makes of a person's own pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from sslmodules.callbacks.features import frozen
from sslmodules.datamodules import VideoFrames
from sslmodules.datamodules.pictures import common_size, read_picture
from sslmodules.evaluation.features import evenly
from sslmodules.evaluation.looking import check_outside, listed
from sslmodules.loading import load
from sslmodules.module import SSLModule
from sslmodules.tiles import grid

FRAMES = 4  # of a clip, where the checkpoint does not tell
MODES = {1: "L", 3: "RGB"}  # of PIL, by the number of channels


def write_pictures(
    ckpt: str, images: str, out: str, count: int = 8, size: int | None = None, seed: int = 0
) -> list[Path]:
    """Write what a trained method makes of one's own pictures, without labels, as PNG files.

    Views, puzzles, reconstructions, colors or attention, as in the folder of a run; of a classifier the classes that it
    finds, of heads for masks and boxes what they find. Each file is a grid with a row for each picture and captions
    above its columns. Pictures are scaled to cover the size at which the method was trained and cut around their
    center. Of a method that learns from video, each folder of frames below ``images`` is one clip. Files are never
    written over. It runs on a GPU where there is one.

    Args:
        ckpt: a checkpoint of this package.
        images: folder of pictures, with the folders below it.
        out: folder to write into; it is made where it is missing.
        count: how many pictures are shown, spread evenly over the folder.
        size: side of the squares that are shown to the method, in pixels; by default as in its training, and where
            neither the checkpoint nor the method tells it, that of the pictures if they agree, else 224.
        seed: of crops, colors, masks and puzzles.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a file that is no checkpoint of a method, a method that learns from sound, no such folder, no
            picture in it or one that cannot be read, pictures that do not fit the method, or a file that would be
            written over.
    """
    if count < 1:
        raise ValueError(f"--count is {count}, expected at least 1")
    module = load(ckpt).eval()
    if module.input_kind == "sound" or module.in_channels not in MODES:
        raise ValueError(
            f"{ckpt} is of a method that learns from {module.input_kind} of {module.in_channels} channels; pass the "
            "checkpoint of one that learns from pictures or video, which have 1 or 3"
        )
    check_outside(out, "--images", images)
    files = listed("--images", images)
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    batch = _clips(module, images, count, size) if module.input_kind == "video" else _images(module, files, count, size)
    module.check_images(batch)
    with frozen(module):
        torch.manual_seed(seed)
        drawn = module.pictures(batch.to(module.device))
    written = {Path(out) / f"{name.replace(' ', '-')}.png": tiles for name, tiles in drawn.items()}
    present = next((file for file in written if file.exists()), None)
    if present is not None:
        raise ValueError(f"{present} exists and would be written over; pass another --out, or remove it")
    Path(out).mkdir(parents=True, exist_ok=True)
    for file, tiles in written.items():
        save_image(grid(tiles), file)
        print(file)
    return list(written)


def _images(module: SSLModule, files: Sequence[str], count: int, size: int | None) -> Tensor:
    shape = _trained_size(module, size) or common_size(files)
    chosen = [files[place] for place in evenly(len(files), count)]
    return torch.stack([read_picture(file, shape, MODES[module.in_channels]) for file in chosen])


def _clips(module: SSLModule, folder: str, count: int, size: int | None) -> Tensor:
    noted, shape = module.input_format, _trained_size(module, size)
    data = VideoFrames(
        folder,
        frames=FRAMES if noted is None else noted.shape[0],
        size=None if shape is None else shape[0],
        mode="RGB" if module.in_channels == 3 else "L",
        num_workers=0,
    )
    data.setup("predict")
    clips = data.predict_dataloader().dataset
    return clips.__getitems__(evenly(len(clips), count))


def _trained_size(module: SSLModule, size: int | None) -> tuple[int, int] | None:
    """Height and width of what the method is shown: as given, as in its training, or those of its views."""
    if size is not None:
        return size, size
    if module.input_format is not None:
        return module.input_format.size
    return None if module.size is None else (module.size, module.size)
