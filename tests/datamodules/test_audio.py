"""Folders of recordings."""

import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from sslmodules.datamodules import AudioFolder
from sslmodules.datamodules.recordings import common_rate, read_recording

RATE = 8000


def recording(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def ramp(length, start=0):
    """Samples that tell their place, exactly as 16 bits hold them."""
    return ((np.arange(length) + start) / 2**15).astype(np.float32)


def numbered(root, count, length=300):
    """Recordings whose first sample is a thousand times their number."""
    for number in range(count):
        recording(root / f"{number}.wav", ramp(length, 1000 * number))
    return root


def firsts(loader):
    return [round(value * 2**15) for sounds in loader for value in sounds[:, 0, 0].tolist()]


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_the_middle_is_read_and_the_whole_and_either_end(tmp_path, ending):
    file = str(recording(tmp_path / f"1.{ending}", ramp(101)))
    assert torch.equal(read_recording(file, RATE)[0], torch.from_numpy(ramp(101)))
    for place, start in ((0.0, 0), (0.5, 41), (0.999, 81)):
        cut = read_recording(file, RATE, 20, place)
        assert cut.shape == (1, 20)
        assert torch.equal(cut[0], torch.from_numpy(ramp(20, start)))


def test_a_short_recording_is_padded_with_zeros_at_its_end(tmp_path):
    file = str(recording(tmp_path / "1.wav", ramp(5, 1)))
    for place in (0.0, 0.5, 0.999):
        assert (read_recording(file, RATE, 8, place)[0] * 2**15).tolist() == [1, 2, 3, 4, 5, 0, 0, 0]


def test_channels_are_averaged_and_loud_floats_cut_off(tmp_path):
    stereo = np.stack([np.full(4, 0.5), np.full(4, -0.25)], 1)
    file = str(recording(tmp_path / "1.wav", stereo))
    assert read_recording(file, RATE)[0].tolist() == [0.125] * 4
    file = str(recording(tmp_path / "2.wav", np.full(4, 1.5), subtype="FLOAT"))
    assert read_recording(file, RATE)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("rate", [16_000, 11_025])
def test_another_rate_is_resampled_and_keeps_pitch_and_length(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)  # a second
    file = str(recording(tmp_path / "1.wav", tone, rate, subtype="FLOAT"))
    found = read_recording(file, RATE)[0]
    assert len(found) == RATE
    assert np.abs(np.fft.rfft(found.numpy())).argmax() == 440
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert np.abs(found.numpy() - wanted)[100:-100].max() < 1e-3
    assert torch.equal(read_recording(file, RATE, 1000, 0.5)[0], found[3500:4500])
    assert np.allclose(found, resample_poly(tone, RATE, rate), atol=1e-6)


def test_windows_are_a_function_of_seed_epoch_and_file(tmp_path):
    numbered(tmp_path, 6)

    def epochs(workers, seed=0):
        data = AudioFolder(str(tmp_path), window=100, val_fraction=0, batch_size=3, num_workers=workers, seed=seed)
        loader = data.train_dataloader()
        return [sorted(firsts(loader)) for _ in range(2)]

    first, second = epochs(0)
    starts = [value - 1000 * number for number, value in enumerate(first)]
    assert all(0 <= start <= 200 for start in starts)
    assert len(set(starts)) > 3
    assert first != second
    assert epochs(2) == [first, second]
    assert epochs(0, seed=1)[0] != first


def test_labeled_recordings_ride_along_with_windows_of_the_others(tmp_path):
    numbered(tmp_path / "sounds", 6)
    for name in ("low", "high"):
        numbered(tmp_path / "labeled" / name, 2)
    roots = {"root": str(tmp_path / "sounds"), "labeled_root": str(tmp_path / "labeled")}
    data = AudioFolder(**roots, window=100, val_fraction=0, batch_size=3, num_workers=0)
    loader = data.train_dataloader()
    epochs = [[batch for batch in loader] for _ in range(2)]
    windows = [sorted(firsts([batch["image"] for batch in epoch])) for epoch in epochs]
    assert windows[0] != windows[1]
    labeled = {
        (label, sound[0, 0].item())
        for epoch in epochs
        for b in epoch
        for sound, label in zip(b["labeled_image"], b["labeled_label"].tolist(), strict=True)
    }
    assert len(labeled) == 4  # the middle of each, in every epoch
    assert data.classes == ["high", "low"]


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.clone())
        return self.weight * batch.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_resuming_in_the_middle_of_an_epoch_gives_the_same_windows(tmp_path):
    numbered(tmp_path / "sounds", 8)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}

    def fit(max_steps, ckpt_path=None):
        data = AudioFolder(str(tmp_path / "sounds"), window=50, val_fraction=0, batch_size=2, num_workers=0)
        module = Recorder()
        trainer = pl.Trainer(max_steps=max_steps, max_epochs=-1, enable_checkpointing=False, **quiet)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        return module.seen

    whole, begun = fit(9), fit(6)
    resumed = fit(9, tmp_path / "6.ckpt")
    assert len(resumed) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole, begun + resumed, strict=True))


def test_outside_training_the_middle_is_taken_or_the_whole(tmp_path):
    recording(tmp_path / "1.wav", ramp(100))
    recording(tmp_path / "2.wav", ramp(40, 1))
    options = {"window": 20, "val_fraction": 0, "batch_size": 2, "num_workers": 0}
    sounds = next(iter(AudioFolder(str(tmp_path), **options).predict_dataloader()))
    assert firsts([sounds]) == [40, 11]
    sounds = next(iter(AudioFolder(str(tmp_path), whole=True, **options).predict_dataloader()))
    assert sounds.shape == (2, 1, 100)
    assert sounds[1, 0, 40:].abs().sum() == 0
    assert torch.equal(sounds[1, 0, :40], torch.from_numpy(ramp(40, 1)))


@pytest.fixture
def spoken(tmp_path):
    for digit in range(3):
        for speaker in ("ann", "bob"):
            for take in range(5):
                recording(tmp_path / "root" / speaker / f"{digit}_{speaker}_{take}.wav", np.full(30, digit / 4))
    return str(tmp_path / "root")


def test_classes_come_from_the_folder_the_name_or_a_function(spoken):
    options = {"window": 20, "val_fraction": 0.2, "batch_size": 24, "num_workers": 0}
    data = AudioFolder(spoken, labels="^([0-9])_", **options)
    assert data.num_classes == 3
    sounds, labels = next(iter(data.train_dataloader()))
    assert torch.equal(sounds[:, 0, 0] * 4, labels.float())
    assert labels.bincount().tolist() == [8, 8, 8]
    assert next(iter(data.val_dataloader()))[1].bincount().tolist() == [2, 2, 2]
    assert AudioFolder(spoken, labels="folder", **options).num_classes == 2
    data = AudioFolder(spoken, labels=lambda file: file[-5], **options)
    assert (data.num_classes, data.classes) == (5, ["0", "1", "2", "3", "4"])
    assert "labels" not in data.hparams
    assert isinstance(next(iter(AudioFolder(spoken, **options).train_dataloader())), torch.Tensor)


def test_expressions_that_find_no_class_are_refused(spoken):
    with pytest.raises(ValueError, match="a regular expression with one group"):
        AudioFolder(spoken, labels="^[0-9]_")
    with pytest.raises(ValueError, match=r"finds no class in the name of .*1_ann_0\.wav"):
        AudioFolder(spoken, labels="^(0)_").prepare_data()
    with pytest.raises(ValueError, match="window is 0, expected a number of samples"):
        AudioFolder(spoken, window=0)


def test_the_rate_is_that_of_the_files_if_they_agree(tmp_path):
    files = [str(recording(tmp_path / f"{number}.wav", ramp(10), 22_050)) for number in range(3)]
    assert common_rate(files) == 22_050
    assert common_rate([*files, str(recording(tmp_path / "9.wav", ramp(10), 8000))]) == 16_000
    data = AudioFolder(str(tmp_path), window=16, val_fraction=0, batch_size=4, num_workers=0)
    assert next(iter(data.train_dataloader())).shape == (4, 1, 16)
    assert data.sample_rate == 16_000


def test_a_broken_file_is_named_or_skipped_and_counted(tmp_path):
    numbered(tmp_path, 4)
    (tmp_path / "1.wav").write_bytes(b"RIFF, or so it says")
    recording(tmp_path / "2.wav", ramp(0))
    options = {"window": 20, "val_fraction": 0, "batch_size": 4, "sample_rate": RATE, "num_workers": 0}
    with pytest.raises(ValueError, match=r'\.wav cannot be read as a recording.*on_error="skip"'):
        next(iter(AudioFolder(str(tmp_path), **options).train_dataloader()))
    with pytest.raises(ValueError, match=r"2\.wav cannot be read.*holds no sample"):
        read_recording(str(tmp_path / "2.wav"), RATE)
    data = AudioFolder(str(tmp_path), on_error="skip", **options)
    with pytest.warns(UserWarning, match="it is left out"):
        assert firsts(data.predict_dataloader()) == [140, 3140]
    assert data.skipped == 2
    with pytest.raises(ValueError, match=r"1\.wav cannot be read"):
        AudioFolder(str(tmp_path), **{**options, "sample_rate": None}).setup("fit")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_a_broken_file(tmp_path, value):
    samples = np.linspace(-0.5, 0.5, 40)
    samples[20] = value
    file = str(recording(tmp_path / "1.wav", samples, subtype="FLOAT"))
    for rate, window in ((RATE, None), (RATE, 8), (RATE // 2, 8)):
        with pytest.raises(ValueError, match=r"1.wav cannot be read .* samples that are NaN or infinite"):
            read_recording(file, rate, window)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_a_broken_file_and_asks_for_no_memory(tmp_path, rate):
    file = recording(tmp_path / "1.wav", ramp(40))
    header = bytearray(file.read_bytes())
    header[24:28] = rate.to_bytes(4, "little")
    file.write_bytes(header)
    for read in (lambda: read_recording(str(file), RATE), lambda: common_rate([str(file)])):
        with pytest.raises(ValueError, match=rf"1.wav cannot be read .* {rate:,} Hz, expected 1,000 to 768,000"):
            read()
    with pytest.raises(ValueError, match=r"sample_rate is .* expected 1,000 to 768,000 Hz"):
        AudioFolder(str(tmp_path), sample_rate=rate)


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no recording \(\.wav, \.flac"):
        AudioFolder(str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match="pass the path of a folder of recordings"):
        AudioFolder(str(tmp_path / "nowhere"))


def test_without_soundfile_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r'pip install "sslmodules\[audio\]"'):
        AudioFolder(str(tmp_path))
