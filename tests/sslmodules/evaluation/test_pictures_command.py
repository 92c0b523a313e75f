"""``sslmodules pictures``: which pictures are shown, at what size, and where the files go."""

import numpy as np
import pytest
import torch
from flowers import flowers
from method_list import TINY, VIT, WAVES
from PIL import Image
from runs import clips, loader, sounds, trainer
from torch.utils.data import DataLoader

from sslmodules import CPC, LinearProbe, Rotation, SimCLR, VideoColorization
from sslmodules.datamodules.pictures import list_pictures, read_picture
from sslmodules.evaluation.pictures_command import write_pictures


@pytest.fixture
def photos(tmp_path):
    return str(flowers(tmp_path / "photos", 9))


def saved(module, folder, data=None):
    """Checkpoint of a module after one step."""
    run = trainer(folder, max_steps=1)
    run.fit(module, data or loader(8, side=24))
    run.save_checkpoint(folder / "run.ckpt")
    return str(folder / "run.ckpt")


def shown(monkeypatch, cls):
    """Batches that methods of a class are asked to show."""
    seen, pictures = [], cls.pictures
    monkeypatch.setattr(cls, "pictures", lambda self, images: seen.append(images) or pictures(self, images))
    return seen


def test_pictures_are_spread_over_the_folder_and_read_as_in_training(photos, tmp_path, monkeypatch):
    seen = shown(monkeypatch, Rotation)
    [file] = write_pictures(saved(Rotation(**TINY), tmp_path), photos, str(tmp_path / "out" / "deep"), count=3)
    assert file == tmp_path / "out" / "deep" / "turned-upright.png"
    assert np.asarray(Image.open(file)).std() > 0
    files = list_pictures(photos)
    expected = torch.stack([read_picture(files[i], (24, 24)) for i in (0, 3, 6)])
    assert torch.equal(seen[0].cpu(), expected)


def test_a_size_can_be_given_and_the_same_seed_gives_the_same_file(photos, tmp_path, monkeypatch):
    seen = shown(monkeypatch, SimCLR)
    ckpt = saved(SimCLR(**TINY, warmup_epochs=0), tmp_path)
    files = [
        write_pictures(ckpt, photos, str(tmp_path / str(i)), size=40, seed=seed)[0] for i, seed in enumerate((0, 0, 1))
    ]
    assert {tuple(x.shape) for x in seen} == {(8, 3, 40, 40)}
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_a_classifier_shows_the_class_that_it_finds(photos, tmp_path):
    probe = LinearProbe(**TINY, class_names=["daisy", "rose"], learning_rates=[0.1])
    [file] = write_pictures(saved(probe, tmp_path, loader(8, classes=2)), photos, str(tmp_path / "out"))
    assert file.name == "classes.png"


def test_folders_of_frames_are_clips(tmp_path, monkeypatch):
    for clip in range(3):
        flowers(tmp_path / "videos" / str(clip), 6, classes=1, seed=clip)
    seen = shown(monkeypatch, VideoColorization)
    module = VideoColorization(**TINY, head_width=16, head_depth=2)
    ckpt = saved(module, tmp_path, DataLoader(clips(8)[:][0], 8))
    [file] = write_pictures(ckpt, str(tmp_path / "videos"), str(tmp_path / "out"))
    assert file.is_file()
    assert seen[0].shape == (3, 4, 3, 16, 16)


def test_what_cannot_be_shown_is_one_sentence(photos, tmp_path):
    ckpt = saved(SimCLR(**VIT, warmup_epochs=0), tmp_path)
    out = str(tmp_path / "out")
    for kwargs, sentence in (
        ({"out": f"{photos}/out"}, "lies in --images"),
        ({"images": str(tmp_path / "nowhere")}, "--images .*nowhere: there is no such folder"),
        ({"count": 0}, "--count is 0, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            write_pictures(**{"ckpt": ckpt, "images": photos, "out": out, **kwargs})
    assert not (tmp_path / "out").exists()
    write_pictures(ckpt, photos, out, count=2)
    with pytest.raises(ValueError, match=r"views.png exists and would be written over; pass another --out, or remove"):
        write_pictures(ckpt, photos, out)
    ckpt = saved(CPC.audio(**WAVES, steps=2, context_args={"dim": 12}), tmp_path, DataLoader(sounds(8)[:][0], 8))
    with pytest.raises(ValueError, match="of a method that learns from sound of 1 channels; pass the checkpoint of"):
        write_pictures(ckpt, photos, str(tmp_path / "other"))
