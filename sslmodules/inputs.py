"""From files, PIL images, arrays and tensors to a batch as a loader of the training data would have yielded it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslmodules.batch import InputKind
from sslmodules.datamodules.pictures import cut_picture, picture_size, read_picture, upright_size
from sslmodules.datamodules.recordings import read_recording
from sslmodules.views import resized_crop, to_float

if TYPE_CHECKING:
    from sslmodules.module import SSLModule

MODES = {1: "L", 3: "RGB"}  # of PIL, by the number of channels
WORDS = {"image": "picture", "sound": "recording", "video": "clip"}
SHAPES = {
    "image": "(H, W), an array (H, W, {c}) or a tensor ({c}, H, W)",
    "sound": "(T,) or ({c}, T)",
    "video": "an array (T, H, W, {c}) or a tensor (T, {c}, H, W)",
}


class InputFormat(NamedTuple):
    """How a loader made what a module was trained on; its checkpoints note it."""

    kind: InputKind
    shape: tuple[int, ...]  # of one image (C, H, W), sound (C, T) or clip (T, C, H, W)
    mode: str | None  # of PIL, "RGB" or "L"; None for sound, and for other numbers of channels
    mean: list[float] | None  # subtracted from each channel, in units of [0, 1]
    std: list[float] | None  # divided by
    crop: str | None  # "center": pictures of another shape are scaled to cover the size and cut around the center
    sample_rate: int | None = None  # of sound in Hz, where the DataModule tells it

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width; None for sound."""
        return None if self.kind == "sound" else (self.shape[-2], self.shape[-1])


def input_format(module: "SSLModule", images: Tensor) -> InputFormat:
    """Note how a batch of the training data was made."""
    sound = module.input_kind == "sound"
    data = None if module._trainer is None else getattr(module.trainer, "datamodule", None)
    return InputFormat(
        kind=module.input_kind,
        shape=tuple(images.shape[1:]),
        mode=None if sound else MODES.get(module.in_channels),
        mean=module.mean,
        std=module.std,
        crop=None if sound else "center",
        sample_rate=getattr(data, "sample_rate", None) if sound else None,
    )


def to_images(module: "SSLModule", pictures: Any) -> Tensor:
    """Return one batch of what a module was trained on, as a loader of its training data would have yielded it.

    Files and PIL images are turned upright (EXIF) and converted to the module's channels. Pictures of another size than
    those of the training are scaled (antialiased) until they cover that size and cut to it around their center; where
    that size is not known, all must have one. Files of sound give the window in their middle that is as long as those
    of the training.

    Args:
        module: tells kind, channels and size of the batch, and its device.
        pictures: one of these or several: a path; a PIL image; an array (H, W) or (H, W, C); a tensor (C, H, W); an
            array or tensor with a batch axis before these. Pixels are uint8, or floats in [0, 1]. For methods that
            learn from sound, paths, or arrays and tensors (T,), (C, T) or (B, C, T) in [-1, 1] or int16; from video,
            arrays (T, H, W, C) or tensors (T, C, H, W), or a batch of them.

    Returns:
        (B, C, H, W), sound (B, C, T), video (B, T, C, H, W); uint8, int16 or float, on the module's device.

    Raises:
        ValueError: no picture at all, a file that cannot be read, another type, number of channels or shape, or values
            outside the range.

    >>> from sslmodules import SimCLR
    >>> to_images(SimCLR("conv4", size=16), [np.zeros((20, 30, 3), dtype=np.uint8), Image.new("L", (32, 24))]).shape
    torch.Size([2, 3, 16, 16])
    """
    size = _training_size(module)
    read: Any = {"image": _image, "sound": _sound, "video": _clip}[module.input_kind]
    batch = []
    for i, item in enumerate(as_list(module, pictures)):
        x = read(module, item, f"{WORDS[module.input_kind]} {i}", size)
        batch.append(x if size is None or module.input_kind == "sound" or x.shape[-2:] == size else _covering(x, size))
    shapes = sorted({tuple(x.shape) for x in batch})
    if len(shapes) > 1:
        raise ValueError(
            f"the {WORDS[module.input_kind]}s have several shapes, {shapes[0]} and {shapes[-1]} among them, and the "
            "module does not know what shape it was trained on; bring them to one"
        )
    if len({x.dtype for x in batch}) > 1:
        batch = [to_float(x) for x in batch]
    images = torch.stack(batch).to(module.device)
    module.check_images(images)
    return images


def as_list(module: "SSLModule", pictures: Any) -> list[Any]:
    """Return the single pictures of what :func:`to_images` takes.

    Raises:
        ValueError: there is none, or something else was given.
    """
    if isinstance(pictures, (str, Path, Image.Image)):
        return [pictures]
    if isinstance(pictures, (np.ndarray, Tensor)):
        axes = {"image": 3, "sound": 2, "video": 4}[module.input_kind]
        gray = isinstance(pictures, np.ndarray) and pictures.ndim == 3 and module.in_channels == 1
        several = pictures.ndim > axes or (module.input_kind == "image" and gray and pictures.shape[-1] != 1)
        pictures = list(pictures) if several else [pictures]
    if not isinstance(pictures, Iterable):
        raise ValueError(f"got a {type(pictures).__name__}, expected paths, PIL images, arrays or tensors")
    pictures = list(pictures)
    if not pictures:
        raise ValueError(f"there is no {WORDS[module.input_kind]}; pass one at least")
    return pictures


def _training_size(module: "SSLModule") -> tuple[int, int] | None:
    """Height and width of what a loader of the training data yields, where they are known."""
    if module.input_format is not None:
        return module.input_format.size
    return None if module.size is None else (module.size, module.size)


def _image(module: "SSLModule", item: Any, name: str, size: tuple[int, int] | None) -> Tensor:
    if not isinstance(item, (str, Path, Image.Image)):
        return _values(module, item, name)
    if module.in_channels not in MODES:
        raise ValueError(
            f"{name} is a file or a PIL image, which have 1 or 3 channels, and the module takes {module.in_channels}; "
            f"pass arrays (H, W, {module.in_channels}) or tensors ({module.in_channels}, H, W)"
        )
    mode = MODES[module.in_channels]
    if isinstance(item, (str, Path)):
        file = _file(item)
        return read_picture(file, size or picture_size(file), mode)
    try:
        return cut_picture(item, size or upright_size(item), mode)
    except Exception as error:  # of a file that PIL has opened and not decoded
        raise ValueError(f"{name} cannot be read as a picture ({type(error).__name__}: {error})") from error


def _sound(module: "SSLModule", item: Any, name: str, size: None) -> Tensor:
    if not isinstance(item, (str, Path)):
        return _values(module, item, name)
    if module.input_format is None or module.input_format.sample_rate is None:
        raise ValueError(
            f"{item}: the module does not know the sample rate that it was trained on; pass arrays or tensors"
        )
    return read_recording(_file(item), module.input_format.sample_rate, module.input_format.shape[-1])


def _clip(module: "SSLModule", item: Any, name: str, size: tuple[int, int] | None) -> Tensor:
    if isinstance(item, (str, Path)):
        raise ValueError(
            f"{item}: files of video are read by sslmodules.datamodules.VideoFolder; pass it to trainer.predict, or "
            "pass clips as tensors (T, C, H, W)"
        )
    return _values(module, item, name)


def _values(module: "SSLModule", item: Any, name: str) -> Tensor:
    """An array or a tensor as (C, H, W), (C, T) or (T, C, H, W), its shape and range checked."""
    c, kind = module.in_channels, module.input_kind
    if not isinstance(item, (np.ndarray, Tensor)):
        kinds = "a path, an array or a tensor" if kind == "sound" else "a path, a PIL image, an array or a tensor"
        raise ValueError(f"{name} is a {type(item).__name__}, expected {kinds}")
    x = torch.as_tensor(np.ascontiguousarray(item) if isinstance(item, np.ndarray) else item).detach()
    given = tuple(x.shape)
    if kind != "sound" and isinstance(item, np.ndarray) and x.ndim == (3 if kind == "image" else 4):
        x = x.movedim(-1, -3)
    if kind == "sound" and x.ndim == 1:
        x = x[None]
    if kind == "image" and x.ndim == 2:
        x = x.expand(c, *x.shape) if c in MODES else x[None]  # gray
    channels = x.ndim - (2 if kind == "sound" else 3)  # their axis
    if x.ndim != {"image": 3, "sound": 2, "video": 4}[kind] or x.shape[channels] != c or not x.numel():
        raise ValueError(f"{name} has the shape {given}, expected {SHAPES[kind].format(c=c)}")
    whole = torch.int16 if kind == "sound" else torch.uint8
    if x.dtype != whole and not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}, expected {whole}, or float in [{-(kind == 'sound')}, 1]")
    if x.is_floating_point() and module.undo_normalization is None:
        _check_range(x, name, -1 if kind == "sound" else 0)
    return x


def _check_range(x: Tensor, name: str, lowest: int) -> None:
    low, high = x.amin().item(), x.amax().item()
    if low >= lowest - 1e-4 and high <= 1 + 1e-4:  # neither where there is a NaN
        return
    hint = ""
    if low < 0 <= lowest:
        hint = "; if they are normalized already, undo that: images * std + mean"
    elif high > 1:
        hint = "; divide them by their full scale" if lowest else "; divide them by 255, or leave them uint8"
    raise ValueError(f"{name} is floats from {low:.3g} to {high:.3g}, expected [{lowest}, 1]{hint}")


def _file(path: str | Path) -> str:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; pass the files in it")
    return str(path)


def _covering(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale (..., C, H, W) to cover a size, cut to it around the center."""
    height, width = x.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    down, across = (max(1, min(side, round(to / scale))) for side, to in zip((height, width), size, strict=True))
    frames = x.reshape(-1, *x.shape[-3:])
    box = torch.tensor([(height - down) // 2, (width - across) // 2, down, across]).expand(len(frames), 4)
    return resized_crop(frames, box, size).reshape(*x.shape[:-2], *size)
