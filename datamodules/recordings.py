"""Sound files: a window read, mixed to mono, resampled."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sslmodules.datamodules.files import Files, common

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au")
USUAL_RATE = 16_000  # of speech
RATES = (1_000, 768_000)  # Hz; a header that says otherwise is broken, and resampling from it would fill the memory


class Recordings(Files):
    """Sound files as fp32 tensors (1, T) in [-1, 1], or pairs with a label.

    Args:
        files: paths.
        labels: (len(files),) or None.
        sample_rate: of the tensors, in Hz; files of another are resampled.
        window: T in samples; None gives whole recordings, those of a batch padded with zeros to the longest.
        seed: of windows anywhere in the recording, a function of it and the number of the draw; None cuts the middle.
        on_error: "raise" a ValueError for a file that cannot be read, or "skip" it, see `Files`.

    Example:
        >>> len(Recordings(["a.wav", "b.flac"], None, sample_rate=16_000, window=20_480))
        2

    """

    def __init__(
        self,
        files: list[str],
        labels: Tensor | None,
        sample_rate: int,
        window: int | None,
        seed: int | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(files, labels, on_error)
        self.sample_rate = sample_rate
        self.window = window
        self.seed = seed

    def read(self, file: str, draw: int) -> Tensor:
        """One recording (1, T)."""
        place = 0.5 if self.seed is None else float(np.random.default_rng((self.seed, draw)).random())
        return read_recording(file, self.sample_rate, self.window, place)

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Whole recordings differ in length."""
        return pad_sequence([item[0] for item in items], batch_first=True)[:, None]


def read_recording(file: str, sample_rate: int, window: int | None = None, place: float = 0.5) -> Tensor:
    """A window of a sound file, its channels averaged: fp32 (1, window) in [-1, 1].

    A shorter recording is padded with zeros at its end. Of a file of another rate the whole is read and resampled, of
    any other the window alone.

    Args:
        file: whatever libsndfile reads.
        sample_rate: of the result, in Hz.
        window: samples of the result; None is the whole recording.
        place: of the window, in [0, 1): 0 at the beginning of the recording, towards 1 at its end.

    Raises:
        ValueError: if the file cannot be read as a recording, holds no sample or one that is not finite, or has a rate
            outside 1 kHz to 768 kHz; the sentence names it.

    """
    soundfile = require_soundfile()
    try:
        with soundfile.SoundFile(file) as sound:
            rate = required_rate(sound.samplerate)
            if len(sound) == 0:
                raise ValueError("it holds no sample")
            if window is not None and rate == sample_rate:
                sound.seek(_start(len(sound), window, place))
                samples = sound.read(window, dtype="float32", always_2d=True)
            else:
                samples = sound.read(dtype="float32", always_2d=True)
        if not np.isfinite(samples).all():
            raise ValueError("it holds samples that are NaN or infinite")
    except (RuntimeError, OSError, ValueError) as error:  # libsndfile's are RuntimeErrors
        raise ValueError(f"{file} cannot be read as a recording ({type(error).__name__}: {error})") from error
    samples = samples.mean(1)
    if rate != sample_rate:
        common = math.gcd(sample_rate, rate)
        samples = resample_poly(samples, sample_rate // common, rate // common)
    if window is not None:
        samples = samples[_start(len(samples), window, place) :][:window]
        samples = np.pad(samples, (0, window - len(samples)))
    return torch.from_numpy(samples).clamp(-1, 1)[None]


def _start(length: int, window: int, place: float) -> int:
    return int(place * (max(0, length - window) + 1))


def common_rate(files: Sequence[str], on_error: str = "raise") -> int:
    """Samples a second if up to 64 of the files, evenly spread, agree; else 16,000. Reads headers only.

    Raises:
        ValueError: if a header cannot be read and on_error="raise".

    """
    require_soundfile()
    return common(files, sample_rate_of, USUAL_RATE, on_error)


def sample_rate_of(file: str) -> int:
    """Samples a second, from the header.

    Raises:
        ValueError: if it cannot be read; the sentence names the file.

    """
    try:
        return required_rate(require_soundfile().info(file).samplerate)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a recording ({type(error).__name__}: {error})") from error


def required_rate(rate: int) -> int:
    """The rate.

    Raises:
        ValueError: outside 1 kHz to 768 kHz.

    """
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"its sample rate is {rate:,} Hz, expected {RATES[0]:,} to {RATES[1]:,}")
    return rate


def require_soundfile() -> Any:
    """The module soundfile.

    Raises:
        ImportError: with what to install, if it is missing.

    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise ImportError(
            f'sound files are read with soundfile, which does not load ({error}): pip install "sslmodules[audio]"'
        ) from error
    return soundfile
