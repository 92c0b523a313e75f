"""Clips of videos: some frames of a folder of pictures, or of a video file, all cut alike."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from sslmodules.datamodules.files import Files
from sslmodules.datamodules.pictures import cover, read_picture

EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")  # they say how long they are and can be sought in


class Clips(Files):
    """Clips as uint8 tensors (T, C, H, W), or pairs with a label; a subclass writes `clip`.

    Args:
        videos: paths; each gives `per_video` clips.
        labels: (len(videos),) or None.
        shape: height and width.
        mode: "RGB" or "L".
        frames: T.
        stride: from one frame of a clip to the next, at least 1.
        per_video: clips of a video.
        seed: of clips from anywhere in the video and the picture, a function of it and the number of the draw; None
            takes them evenly spread over the video and from the centre.
        on_error: "raise" a ValueError for a video that cannot be read, or "skip" it, see `Files`.

    Example:
        >>> len(FrameClips({"a": ["a/1.png", "a/2.png"]}, ["a"], None, (32, 32), frames=2, per_video=3))
        3

    """

    def __init__(
        self,
        videos: list[str],
        labels: Tensor | None,
        shape: tuple[int, int],
        mode: str = "RGB",
        frames: int = 4,
        stride: int = 1,
        per_video: int = 1,
        seed: int | None = None,
        on_error: str = "raise",
    ) -> None:
        each = [video for video in videos for _ in range(per_video)]
        super().__init__(each, None if labels is None else labels.repeat_interleave(per_video), on_error)
        self.shape = shape
        self.mode = mode
        self.frames = frames
        self.stride = stride
        self.per_video = per_video
        self.seed = seed

    def read(self, file: str, draw: int) -> Tensor:
        """One clip (T, C, H, W)."""
        if self.seed is None:
            return self.clip(file, (draw % self.per_video + 0.5) / self.per_video, (0.5, 0.5))
        when, top, left = np.random.default_rng((self.seed, draw)).random(3).tolist()
        return self.clip(file, when, (top, left))

    def clip(self, video: str, when: float, at: tuple[float, float]) -> Tensor:
        """The clip that begins at `when`, 0 at the beginning and towards 1 at the last that the video holds.

        Its frames are cut out `at`, see :func:`~sslmodules.datamodules.pictures.cover`.

        Raises:
            ValueError: if the video cannot be read, or is too short; the sentence names it.

        """
        raise NotImplementedError(f"{type(self).__name__} does not say how clips are read: write clip(video, when, at)")

    def numbers(self, length: int, when: float) -> range:
        """Which frames of a video of `length` frames make a clip.

        Raises:
            ValueError: if there are not that many.

        """
        span = (self.frames - 1) * self.stride + 1
        if length < span:
            raise ValueError(f"{length} frames are fewer than the {span} that a clip spans")
        start = int(when * (length - span + 1))
        return range(start, start + span, self.stride)


class FrameClips(Clips):
    """Clips of videos whose frames lie as pictures in a folder each.

    Args:
        pictures: folder -> its frames in order.
        **options: those of `Clips`.

    """

    def __init__(self, pictures: Mapping[str, list[str]], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pictures = pictures

    def clip(self, video: str, when: float, at: tuple[float, float]) -> Tensor:
        """Some pictures of a folder."""
        files = self.pictures[video]
        try:
            numbers = self.numbers(len(files), when)
        except ValueError as error:
            raise ValueError(f"{video} gives no clip ({error})") from error
        return torch.stack([read_picture(files[i], self.shape, self.mode, at) for i in numbers])


class VideoClips(Clips):
    """Clips of video files.

    Args:
        fps: frames a second that the stride counts; None: those of each file.
        **options: those of `Clips`.

    """

    def __init__(self, fps: float | None, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fps = fps

    def clip(self, video: str, when: float, at: tuple[float, float]) -> Tensor:
        """Some frames of a file, those that are shown at the clip's moments."""
        av = require_av()
        try:
            with av.open(video) as container:
                stream = container.streams.video[0]
                rate = self.fps or float(stream.average_rate)
                numbers = self.numbers(round(_seconds(container, stream) * rate), when)
                frames = _frames_at(container, stream, [number / rate for number in numbers])
                return torch.stack([pil_to_tensor(cover(upright(f, self.mode), *self.shape, at)) for f in frames])
        except Exception as error:  # the decoders raise all kinds
            raise ValueError(f"{video} cannot be read as a video ({type(error).__name__}: {error})") from error


def _seconds(container: Any, stream: Any) -> float:
    """How long a video is; some formats note it for the file, and not for its streams."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6


def _frames_at(container: Any, stream: Any, moments: list[float]) -> list[Any]:
    """The frames that are shown at some moments, ascending, in seconds from the beginning."""
    first = stream.start_time or 0
    tick = float(stream.time_base)
    # Decoding begins at the last key frame before the first moment. A moment on a frame's own time is that frame's,
    # for all that is lost by rounding.
    container.seek(first + int(moments[0] / tick), stream=stream)
    found: list[Any] = []
    shown = None
    for frame in container.decode(stream):
        time = (frame.pts - first) * tick
        while len(found) < len(moments) and time > moments[len(found)] + tick / 2:
            found.append(shown or frame)
        if len(found) == len(moments):
            return found
        shown = frame
    if shown is None or time + 2 / float(stream.average_rate) < moments[-1]:
        raise ValueError(f"it ends before {moments[-1]:.2f} s")
    return found + [shown] * (len(moments) - len(found))


def upright(frame: Any, mode: str) -> Any:
    """A frame as a picture; telephones note how they were held."""
    picture = frame.to_image().convert(mode)
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def video_size(file: str) -> tuple[int, int]:
    """Height and width of a video, upright.

    Raises:
        ValueError: if it cannot be read; the sentence names it.

    """
    av = require_av()
    try:
        with av.open(file) as container:
            return upright(next(container.decode(video=0)), "L").size[::-1]
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a video ({type(error).__name__}: {error})") from error


def require_av() -> Any:
    """The module av.

    Raises:
        ImportError: with what to install, if it is missing.

    """
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f'videos are read with PyAV, which does not load ({error}): pip install "sslmodules[video]"'
        ) from error
    return av
