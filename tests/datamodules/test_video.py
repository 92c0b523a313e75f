"""Clips of folders of frames and of video files: which frames, cut how, and the same again after a stop."""

import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from sslmodules.datamodules import VideoFolder, VideoFrames
from sslmodules.datamodules.clips import FrameClips, VideoClips, video_size
from sslmodules.datamodules.pictures import cover

av = pytest.importorskip("av")

ALL = {"val_fraction": 0, "num_workers": 0}


def frames(folder, count, first=0, size=(8, 6)):
    """Pictures whose grey value is their number."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", size, first + number).save(folder / f"{number}.png")
    return folder


def film(path, count=20, rate=10, size=(32, 16), codec="mpeg4", gop=7):
    """A film whose frame n has the grey value 10 n, up to 240 and again from 0."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for number in range(count):
            picture = np.full((size[1], size[0], 3), 10 * (number % 25), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


def shown(clips):
    """Numbers of the frames of a film, (B, T)."""
    return (clips[:, :, 0, 2, 2].float() / 10).round().long().tolist()


def values(clips):
    return clips[:, :, 0, 0, 0].tolist()


# --- folders of frames ----------------------------------------------------------------------------------------------


def test_each_folder_of_pictures_is_a_video_and_clips_keep_to_it(tmp_path):
    frames(tmp_path / "b10", 9, first=100)
    frames(tmp_path / "b2" / "deep", 12)
    data = VideoFrames(str(tmp_path), frames=3, stride=2, clips_per_video=20, batch_size=40, **ALL)
    batch = next(iter(data.train_dataloader()))
    assert batch.dtype == torch.uint8
    assert batch.shape == (40, 3, 3, 6, 8)
    starts = set()
    for clip in values(batch):
        assert clip == [clip[0], clip[0] + 2, clip[0] + 4]
        assert clip[0] in (*range(8), *range(100, 105))
        starts.add(clip[0])
    assert len(starts) == 8 + 5  # anywhere that they fit
    assert [file.removeprefix(str(tmp_path)) for file in data.files("train")[::20]] == ["/b2/deep", "/b10"]


def test_clips_outside_training_are_spread_evenly_and_the_same_again(tmp_path):
    frames(tmp_path / "a", 10)
    data = VideoFrames(str(tmp_path), frames=2, clips_per_video=3, batch_size=3, **ALL)
    for _ in range(2):
        assert values(next(iter(data.predict_dataloader()))) == [[1, 2], [4, 5], [7, 8]]


def test_a_clip_is_cut_alike_in_all_frames_and_elsewhere_in_the_next(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    ramp = np.arange(200, dtype=np.uint8)[None].repeat(8, 0)
    for number in range(4):
        Image.fromarray(ramp).save(folder / f"{number}.png")
    data = VideoFrames(str(tmp_path), clips_per_video=6, size=8, batch_size=6, **ALL)
    cut = next(iter(data.train_dataloader()))[:, :, 0, 0]  # (6, 4, 8)
    assert (cut == cut[:, :1]).all()
    assert len(cut[:, 0, 0].unique()) > 3
    assert next(iter(data.predict_dataloader()))[:, :, 0, 0, 0].unique().tolist() == [96]  # the centre


@pytest.mark.parametrize(("at", "corner"), [((0, 0), (0, 0)), ((0, 1), (0, 40)), ((0.5, 0.5), (0, 20))])
def test_pictures_are_cut_where_asked(at, corner):
    picture = Image.fromarray(np.arange(10 * 50, dtype=np.int32).reshape(10, 50).astype(np.uint8))
    expected = np.asarray(picture)[corner[0] : corner[0] + 10, corner[1] : corner[1] + 10]
    assert np.array_equal(np.asarray(cover(picture, 10, 10, at)), expected)


def test_a_part_of_the_videos_is_held_out_and_folders_name_classes(tmp_path):
    for number in range(10):
        for name, first in (("jump", 10), ("run", 20)):
            frames(tmp_path / name / str(number), 2, first)
    data = VideoFrames(str(tmp_path), labels=True, frames=2, clips_per_video=2, batch_size=36, num_workers=0)
    clips, labels = next(iter(data.train_dataloader()))
    assert data.classes == ["jump", "run"]
    assert clips[:, 0, 0, 0, 0].tolist() == [[10, 20][label] for label in labels.tolist()]
    assert len(clips) == 36
    held = data.files("val")
    assert len(held) == 4
    assert not set(held) & set(data.files("train"))


@pytest.mark.parametrize("workers", [0, 2])
def test_short_and_broken_videos_are_named_or_skipped_with_a_count(tmp_path, workers):
    frames(tmp_path / "1", 3)
    frames(tmp_path / "2", 6, first=50)
    (frames(tmp_path / "3", 4) / "2.png").write_text("no picture")
    options = {"frames": 4, "batch_size": 3, "val_fraction": 0, "num_workers": workers}
    with pytest.raises(ValueError, match=r'1 gives no clip \(3 frames are fewer than the 4.*on_error="skip"'):
        next(iter(VideoFrames(str(tmp_path), **options).train_dataloader()))
    data = VideoFrames(str(tmp_path), on_error="skip", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clips = next(iter(data.train_dataloader()))
    assert all(clip[0] in (50, 51, 52) for clip in values(clips))
    assert data.skipped == 2
    if workers == 0:
        sentences = [str(w.message) for w in caught if "takes its place" in str(w.message)]
        assert any("2.png cannot be read as a picture" in text for text in sentences)


def test_folders_without_videos_and_numbers_below_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no picture"):
        VideoFrames(str(tmp_path)).prepare_data()
    with pytest.raises(ValueError, match=r"holds no video \(\.mp4"):
        VideoFolder(str(tmp_path)).prepare_data()
    with pytest.raises(ValueError, match=r"but pictures lie in '.*alone' itself"):
        VideoFrames(str(frames(tmp_path / "alone", 4)), labels=True).prepare_data()
    with pytest.raises(FileNotFoundError, match="pass the path of a folder of videos"):
        VideoFolder(str(tmp_path / "nowhere"))
    for numbers in ({"frames": 0}, {"stride": 0}, {"clips_per_video": 0}):
        with pytest.raises(ValueError, match="are at least 1, got"):
            VideoFrames(str(tmp_path), **numbers)
    with pytest.raises(ValueError, match="fps is 0"):
        VideoFolder(str(tmp_path), fps=0)


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.clone())
        return self.weight * batch.float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder, root, workers, ckpt_path=None):
    data = VideoFrames(
        str(root), frames=2, size=4, clips_per_video=4, batch_size=2, val_fraction=0, num_workers=workers
    )
    save = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Recorder()
    Trainer(max_epochs=2, callbacks=[save], **options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_very_clips_and_every_epoch_others(tmp_path, workers):
    root = tmp_path / "videos"
    for number in range(2):
        frames(root / str(number), 50, first=100 * number, size=(9, 6))
    whole = run(tmp_path / "whole", root, workers)
    assert len(whole) == 8
    resumed = run(tmp_path / "again", root, workers, tmp_path / "whole" / "step=3.ckpt")
    assert len(resumed) == 5
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    epochs = [sorted(clip for batch in part for clip in values(batch)) for part in (whole[:4], whole[4:])]
    assert epochs[0] != epochs[1]


# --- video files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mov", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx")],
)
def test_the_frames_asked_for_are_those_of_the_file(tmp_path, name, codec):
    path = film(tmp_path / name, codec=codec)
    clips = VideoClips(None, [str(path)], None, (16, 32), frames=3, stride=4)
    for start in range(12):
        clip = clips.clip(str(path), start / 12, (0.5, 0.5))
        assert shown(clip[None]) == [[start, start + 4, start + 8]]


def test_frames_are_taken_at_the_rate_asked_for(tmp_path):
    path = str(film(tmp_path / "a.mp4"))  # 2 s
    of_five = VideoClips(5, [path], None, (16, 32), frames=4).clip(path, 0, (0.5, 0.5))
    of_twenty = VideoClips(20, [path], None, (16, 32), frames=6).clip(path, 0.999, (0.5, 0.5))
    assert shown(of_five[None]) == [[0, 2, 4, 6]]
    assert shown(of_twenty[None]) == [[17, 17, 18, 18, 19, 19]]


def test_a_film_held_on_its_side_is_turned_upright(tmp_path):
    path = tmp_path / "a.mp4"
    left_is_dark = np.zeros((16, 32, 3), dtype=np.uint8)
    left_is_dark[:, 16:] = 250
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(left_is_dark)))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = (1 << 16).to_bytes(4, "big")
    data[matrix : matrix + 20] = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(4)
    path.write_bytes(data)  # as telephones write it: to be turned clockwise by 90 degrees
    assert video_size(str(path)) == (32, 16)
    batch = next(iter(VideoFolder(str(tmp_path), batch_size=1, **ALL).train_dataloader()))
    assert batch.shape == (1, 4, 3, 32, 16)
    assert batch[:, :, :, :12].max() < 20
    assert batch[:, :, :, 20:].min() > 230


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_and_short_films_are_named_or_skipped_with_a_count(tmp_path, workers):
    film(tmp_path / "good.mp4")
    whole = film(tmp_path / "cut.avi", count=200).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    film(tmp_path / "short.mp4", count=3)
    (tmp_path / "text.mkv").write_text("no film")
    options = {"size": 16, "batch_size": 40, "clips_per_video": 10, "val_fraction": 0, "num_workers": workers}
    with pytest.raises(ValueError, match=r'cannot be read as a video.*on_error="skip"'):
        next(iter(VideoFolder(str(tmp_path), **options).train_dataloader()))
    data = VideoFolder(str(tmp_path), on_error="skip", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clips = next(iter(data.train_dataloader()))
    assert clips.shape == (40, 4, 3, 16, 16)
    assert data.skipped == 3


def test_without_pyav_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "sslmodules\[video\]"'):
        VideoFolder(str(tmp_path))


def test_hyperparameters_are_plain_and_hold_what_a_subclass_takes(tmp_path):
    assert dict(VideoFolder(str(tmp_path), frames=3, fps=6).hparams).items() >= {"frames": 3, "fps": 6}.items()
    assert len(FrameClips({}, [], None, (8, 8))) == 0
