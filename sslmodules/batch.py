"""What loaders yield: reading a batch, and saying clearly where a method cannot train on it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

InputKind = Literal["image", "sound", "video"]


class Batch(NamedTuple):
    """What a loader's batch holds, by name; see :func:`unpack`."""

    images: Tensor | None  # or sounds, or clips of video
    labels: Tensor | None
    views: list[Any] | None


def unpack(batch: Any) -> Batch:
    """Read what an ordinary loader yields.

    Args:
        batch: a tensor of images; ``(images, labels)`` or ``(images,)``, as tuple or list; or a mapping with
            ``"image"`` (``"sound"``, ``"video"``), and ``"label"`` where there are labels. Ready-made views come as a
            list in the place of the images, or under the key ``"views"``.

    Raises:
        ValueError: anything else, with what was found.

    >>> unpack([torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])]).labels
    tensor([0, 1])
    """
    if isinstance(batch, Tensor):
        return Batch(batch, None, None)
    if isinstance(batch, Mapping):
        views, images, labels = batch.get("views"), inputs_of(batch), batch.get("label")
        if views is None and images is None:
            raise ValueError(
                f"the batch has the keys {sorted(map(str, batch))}; expected 'image' or 'views' among them"
            )
        return Batch(images, labels, list(views) if views is not None else None)
    if isinstance(batch, Sequence) and len(batch) in (1, 2):
        first, labels = batch[0], batch[1] if len(batch) == 2 else None
        if labels is None or (isinstance(labels, Tensor) and labels.ndim in (1, 2)):
            if isinstance(first, Tensor):
                return Batch(first, labels, None)
            if isinstance(first, Sequence) and all(isinstance(v, Tensor) for v in first):
                return Batch(None, labels, list(first))
    raise ValueError(
        f"the batch is {_describe(batch)}; expected a tensor of images, (images, labels), ([view, view, ...], labels) "
        "or a mapping with 'image' and 'label'"
    )


def inputs_of(batch: Mapping[str, Any]) -> Any:
    """What a mapping holds under "image", "sound" or "video"; None where it has neither."""
    return next((batch[kind] for kind in get_args(InputKind) if batch.get(kind) is not None), None)


def check_images(
    images: Tensor, channels: int, patch: tuple[int, int] | None, size: int | None, any_range: bool
) -> None:
    """Raise a ValueError with one clear sentence where images do not fit.

    Args:
        images: as a loader yields them.
        channels: that the encoder takes.
        patch: height and width of the encoder's patches, where it has any.
        size: side of the views; None is that of the images.
        any_range: floats outside [0, 1] are expected (a normalisation will be undone).
    """
    if images.ndim != 4:
        raise ValueError(f"the images have the shape {tuple(images.shape)}, expected (B, C, H, W)")
    if images.shape[1] != channels:
        raise ValueError(
            f"the images have {images.shape[1]} channels, the encoder takes {channels}; pass "
            f"in_channels={images.shape[1]} to the method, or let the loader convert the images"
        )
    height, width = (size, size) if size else images.shape[-2:]
    if patch is not None and (height < patch[0] or width < patch[1] or height % patch[0] or width % patch[1]):
        raise ValueError(
            f"the views are {height}x{width} px and the encoder cuts patches of {patch[0]}x{patch[1]}; pass a size "
            "that is a multiple of the patch"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"the images are {images.dtype}, expected uint8, or float in [0, 1]")
    if any_range:
        return
    low, high = images.amin().item(), images.amax().item()
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN too
        hint = (
            "if they run to 255, leave them uint8 or divide by 255"
            if low >= 0
            else "if they are normalised already, pass undo_normalization=(mean, std) with the values to undo"
        )
        raise ValueError(
            f"the images are floats from {low:.3g} to {high:.3g}, expected uint8, or float in [0, 1]; {hint}"
        )


def check_clips(clips: Tensor, *args: Any, **kwargs: Any) -> None:
    """Raise a ValueError with one clear sentence where clips (B, T, C, H, W) do not fit; as :func:`check_images`."""
    if clips.ndim != 5:
        raise ValueError(f"the clips have the shape {tuple(clips.shape)}, expected (B, T, C, H, W)")
    check_images(clips.flatten(0, 1), *args, **kwargs)


def check_sound(sound: Tensor, channels: int) -> None:
    """Raise a ValueError with one clear sentence where sound does not fit: (B, C, T), int16, or float in [-1, 1]."""
    if sound.ndim != 3:
        raise ValueError(f"the sound has the shape {tuple(sound.shape)}, expected (B, C, T)")
    if sound.shape[1] != channels:
        raise ValueError(
            f"the sound has {sound.shape[1]} channels, the encoder takes {channels}; pass in_channels={sound.shape[1]} "
            "to the method, or let the loader mix it down"
        )
    if sound.dtype == torch.int16:
        return
    if not sound.is_floating_point():
        raise ValueError(f"the sound is {sound.dtype}, expected int16, or float in [-1, 1]")
    low, high = sound.amin().item(), sound.amax().item()
    if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):  # NaN too
        raise ValueError(
            f"the sound is floats from {low:.3g} to {high:.3g}, expected int16, or float in [-1, 1]; divide it by its "
            "full scale"
        )


def _describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"a {type(batch).__name__} of " + ", ".join(_describe(b) for b in batch)
    return f"a {type(batch).__name__}"
