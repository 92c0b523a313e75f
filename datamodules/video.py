"""Any folder of videos as a DataModule: clips of some frames, from video files or from folders of frames."""

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sslmodules.datamodules.clips import EXTENSIONS as VIDEOS
from sslmodules.datamodules.clips import Clips, FrameClips, VideoClips, require_av, video_size
from sslmodules.datamodules.files import FileFolder
from sslmodules.datamodules.pictures import EXTENSIONS as PICTURES
from sslmodules.datamodules.pictures import common_size, height_and_width


class VideoDataModule(FileFolder):
    """Videos below a folder: batches of uint8 clips (B, T, C, H, W), or `(clips, labels)`.

    Training takes clips that begin anywhere in a video, others in every epoch; validation, test and prediction take
    them evenly spread. All frames of a clip are scaled (antialiased) until they cover the wanted size and cut to it
    alike, anywhere in training and around the centre else. Videos come in natural order (2 before 10); hidden ones are
    left out, links are followed.

    Args:
        root: the videos to train on.
        val_root: videos for validation; None: a part of root is held out.
        test_root: videos to test on and to predict; None: test is val, and predict is every video under root.
        labeled_root: videos with labels beside those of root, which then have none; the first folder below it names
            the class. They ride along in training for the probes, and without val_root a part of them is held out.
        labels: whether the first folder below root names the class.
        frames: T, of a clip.
        stride: from one frame of a clip to the next, in frames.
        clips_per_video: in an epoch.
        size: side of the square frames, or their height and width; None: the size of the videos if those looked at
            (up to 64) agree, else 224.
        mode: "RGB" or "L".
        val_fraction: share of the videos held out of root, of each class if there are labels, in [0, 1); 0: no
            validation.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        on_error: a video that cannot be read or is too short is an error ("raise"), or left out, while in training
            the next one takes its place ("skip").
        extensions: endings of the files, in any case; None: the common ones.
        batch_size: clips in a batch of one process; None: 32, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of what is held out, the labels that stay, the order and the clips.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: at once, if a folder does not exist.
        ValueError: at once, if a number is below 1; from `prepare_data` or `setup`, if a folder holds no video or its
            classes do not fit; while loading, also in workers, if a video cannot be read and on_error="raise".

    """

    default_batch_size = 32
    draws = True

    def __init__(
        self,
        root: str,
        val_root: str | None = None,
        test_root: str | None = None,
        labeled_root: str | None = None,
        labels: bool = False,
        frames: int = 4,
        stride: int = 1,
        clips_per_video: int = 1,
        size: int | tuple[int, int] | None = None,
        mode: Literal["RGB", "L"] = "RGB",
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        on_error: Literal["raise", "skip"] = "raise",
        extensions: list[str] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        roots = (root, val_root, test_root, labeled_root)
        root, val_root, test_root, labeled_root = (None if path is None else str(path) for path in roots)  # type: ignore[assignment]
        super().__init__(
            root,
            val_root,
            test_root,
            labeled_root,
            labels,
            val_fraction,
            label_fraction,
            unlabeled,
            on_error,
            extensions,
            batch_size,
            num_workers,
            seed,
            drop_last,
        )
        self.save_hyperparameters(logger=False)
        if min(frames, stride, clips_per_video) < 1:
            raise ValueError(
                f"frames, stride and clips_per_video are at least 1, got {frames}, {stride} and {clips_per_video}"
            )
        self.frames = frames
        self.stride = stride
        self.clips_per_video = clips_per_video
        self.size = size
        self.mode = mode
        self._shape: tuple[int, int] | None = None

    def dataset(self, files: list[str], labels: Tensor | None, split: str) -> Clips:
        """The clips of some videos."""
        if self._shape is None:
            self._shape = height_and_width(self.size) or self.common_size(self._list("root")[0])
        return self.clips(
            files,
            labels,
            self._shape,
            mode=self.mode,
            frames=self.frames,
            stride=self.stride,
            per_video=self.clips_per_video,
            seed=self.seed if split == "train" else None,
            on_error=self.on_error,
        )

    def common_size(self, files: list[str]) -> tuple[int, int]:
        """Height and width of the videos if they agree, else (224, 224)."""
        raise NotImplementedError(f"{type(self).__name__} has no method common_size(files)")

    def clips(self, *args: Any, **options: Any) -> Clips:
        """How clips of this kind of video are read."""
        raise NotImplementedError(f"{type(self).__name__} has no method clips(*args, **options)")


class VideoFrames(VideoDataModule):
    """Videos whose frames lie as pictures, each folder of pictures one video. Arguments: see :class:`VideoDataModule`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "waves").mkdir()
        ...     for number in range(12):
        ...         Image.new("RGB", (30, 20)).save(f"{folder}/waves/{number}.png")
        ...     data = VideoFrames(folder, frames=4, stride=2, clips_per_video=5, val_fraction=0, batch_size=3)
        ...     next(iter(data.train_dataloader())).shape
        torch.Size([3, 4, 3, 20, 30])

    """

    kind = "picture"
    endings = PICTURES

    def __init__(self, root: str, *args: Any, **options: Any) -> None:
        super().__init__(root, *args, **options)
        self._pictures: dict[str, list[str]] = {}  # folder -> its frames in order

    def listed(self, root: str) -> list[str]:
        """The folders that hold pictures, in natural order."""
        found: dict[str, list[str]] = defaultdict(list)
        for file in super().listed(root):
            found[str(Path(file).parent)].append(file)
        self._pictures |= found
        return list(found)

    def class_names(self, argument: str, root: str, files: list[str]) -> list[str]:
        """The class of each video below a folder."""
        if str(Path(root)) in files:
            raise ValueError(
                f"the class of a video is the first folder below {argument}={root!r}, but pictures lie in {root!r} "
                "itself: move them, or pass labels=False"
            )
        return super().class_names(argument, root, files)

    def common_size(self, files: list[str]) -> tuple[int, int]:
        """Height and width of the videos' first frames if they agree, else (224, 224)."""
        return common_size([self._pictures[video][0] for video in files], self.on_error)

    def clips(self, *args: Any, **options: Any) -> FrameClips:
        """Clips of pictures."""
        return FrameClips(self._pictures, *args, **options)


class VideoFolder(VideoDataModule):
    """A folder of video files, read with PyAV: `pip install "sslmodules[video]"`.

    A clip is decoded from the last key frame before it. Videos that were filmed on their side are turned upright.

    Args:
        root: the videos to train on.
        fps: frames a second that the stride counts, such as 6 for video colorization; None: those of each file.
        **options: those of :class:`VideoDataModule`.

    Raises:
        ImportError: at once, if PyAV is not installed.

    Example:
        >>> import av, numpy, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with av.open(f"{folder}/black.mp4", "w") as film:
        ...         stream = film.add_stream("mpeg4", rate=10)
        ...         stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        ...         for _ in range(12):
        ...             film.mux(stream.encode(av.VideoFrame.from_ndarray(numpy.zeros((16, 32, 3), dtype="uint8"))))
        ...         film.mux(stream.encode())
        ...     data = VideoFolder(folder, frames=4, stride=2, val_fraction=0, batch_size=1, num_workers=0)
        ...     next(iter(data.train_dataloader())).shape
        torch.Size([1, 4, 3, 16, 32])

    """

    kind = "video"
    endings = VIDEOS

    def __init__(self, root: str, *args: Any, fps: float | None = None, **options: Any) -> None:
        super().__init__(root, *args, **options)
        require_av()
        if fps is not None and not fps > 0:
            raise ValueError(f"fps is {fps}, expected frames a second, or None for those of each file")
        self.fps = fps

    def common_size(self, files: list[str]) -> tuple[int, int]:
        """Height and width of the videos if they agree, else (224, 224)."""
        return common_size(files, self.on_error, video_size)

    def clips(self, *args: Any, **options: Any) -> VideoClips:
        """Clips of video files."""
        return VideoClips(self.fps, *args, **options)
