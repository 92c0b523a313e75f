"""Any folder of sound files as a DataModule: windows of one length, classes by folder or by file name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor

from sslmodules.datamodules.files import FileFolder
from sslmodules.datamodules.recordings import EXTENSIONS, RATES, Recordings, common_rate, require_soundfile


class AudioFolder(FileFolder):
    """A folder of recordings, however deep: batches of fp32 sounds (B, 1, T) in [-1, 1], or `(sounds, labels)`.

    Training takes a window anywhere in each recording, another one in every epoch; validation, test and prediction take
    its middle. A recording shorter than the window is padded with zeros at its end. Channels are averaged. Files come
    in natural order (2 before 10); hidden ones are left out, links are followed. Needs soundfile:
    `pip install "sslmodules[audio]"`.

    Args:
        root: the recordings to train on.
        val_root: recordings for validation; None: a part of root is held out.
        test_root: recordings to test on and to predict; None: test is val, and predict is every recording under root.
        labeled_root: recordings with labels beside those of root, which then have none; their classes as `labels`
            says, by default the first folder below it. They ride along in training for the probes, and without val_root
            a part of them is held out.
        labels: "folder": the first folder below root names the class; a regular expression with one group, which
            finds the class in the file's name, such as `"^([0-9])_"` in `7_jackson_0.wav`; or a function from the path
            to the class. None: no classes.
        sample_rate: of the batches, in Hz; other files are resampled. None: that of the files looked at (up to 64) if
            they agree, else 16,000.
        window: T in samples.
        whole: outside training, take recordings whole, those of a batch padded to the longest.
        val_fraction: share held out of root, of each class if there are labels, in [0, 1); 0: no validation.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        on_error: a file that cannot be read is an error ("raise"), or left out, while in training the next one takes
            its place ("skip").
        extensions: endings of the files, in any case; None: the common ones.
        batch_size: recordings in a batch of one process; None: 64, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of what is held out, the labels that stay, the order and the windows.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        ImportError: at once, if soundfile is not installed.
        FileNotFoundError: at once, if a folder does not exist.
        ValueError: at once, for a window below 1, a rate outside 1 kHz to 768 kHz or an expression of another number of
            groups; from `prepare_data` or
            `setup`, if a folder holds no recording or its classes do not fit; while loading, also in workers, if a file
            cannot be read and on_error="raise".

    Example:
        >>> import tempfile, numpy, soundfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("0_ann_0.wav", "1_ann_0.wav"):
        ...         soundfile.write(f"{folder}/{name}", numpy.zeros(300), 8000)
        ...     data = AudioFolder(folder, labels="^([0-9])_", window=256, val_fraction=0, batch_size=2, num_workers=0)
        ...     sounds, labels = next(iter(data.train_dataloader()))
        >>> sounds.shape, sorted(labels.tolist()), data.classes
        (torch.Size([2, 1, 256]), [0, 1], ['0', '1'])

    """

    default_batch_size = 64
    kind = "recording"
    endings = EXTENSIONS
    draws = True

    def __init__(
        self,
        root: str,
        val_root: str | None = None,
        test_root: str | None = None,
        labeled_root: str | None = None,
        labels: str | Callable[[str], str] | None = None,
        sample_rate: int | None = None,
        window: int = 20_480,
        whole: bool = False,
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
        require_soundfile()
        self.save_hyperparameters(ignore=["labels"] if callable(labels) else [], logger=False)
        if window < 1:
            raise ValueError(f"window is {window}, expected a number of samples")
        if sample_rate is not None and not RATES[0] <= sample_rate <= RATES[1]:
            raise ValueError(f"sample_rate is {sample_rate:,}, expected {RATES[0]:,} to {RATES[1]:,} Hz")
        if isinstance(labels, str) and labels != "folder" and re.compile(labels).groups != 1:
            raise ValueError(
                f'labels is {labels!r}; expected "folder", or a regular expression with one group (...) that finds the '
                "class in a file's name"
            )
        self.sample_rate = sample_rate
        self.window = window
        self.whole = whole

    def dataset(self, files: list[str], labels: Tensor | None, split: str) -> Recordings:
        """The recordings, windows of them or whole."""
        if self.sample_rate is None:
            self.sample_rate = common_rate(self._list("root")[0], self.on_error)
        if split == "train":
            return Recordings(files, labels, self.sample_rate, self.window, self.seed, self.on_error)
        window = None if self.whole else self.window
        return Recordings(files, labels, self.sample_rate, window, on_error=self.on_error)

    def class_names(self, argument: str, root: str, files: list[str]) -> list[str]:
        """The class of each file, by its folder, its name or the function that was given."""
        if callable(self.labels):
            return [str(self.labels(file)) for file in files]
        if self.labels == "folder":
            return super().class_names(argument, root, files)
        found = [re.search(self.labels, Path(file).name) for file in files]
        for file, match in zip(files, found, strict=True):
            if match is None:
                raise ValueError(
                    f"labels={self.labels!r} finds no class in the name of {file}: pass a regular expression that "
                    "matches every name"
                )
        return [match[1] for match in found]  # type: ignore[index]
