"""Pictures in any form become the batch that a loader would have yielded."""

import numpy as np
import pytest
import torch
from PIL import Image

from sslmodules import CPC, SimCLR
from sslmodules.datamodules import ImageFolder
from sslmodules.inputs import to_images


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def simclr(**kwargs):
    return SimCLR("conv4", encoder_args={"widths": [4, 8]}, size=kwargs.pop("size", 16), **kwargs)


def test_every_form_of_one_picture_gives_the_same_batch(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "p.png")
    as_tensor = torch.from_numpy(picture).permute(2, 0, 1)
    whole = to_images(simclr(size=None), picture)
    assert whole.shape == (1, 3, 24, 40)
    assert whole.dtype == torch.uint8
    forms = [tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(picture), picture, picture[None], as_tensor]
    forms += [as_tensor[None], as_tensor / 255, as_tensor.double() / 255, picture / 255, [picture], [as_tensor / 255]]
    for form in forms:
        batch = to_images(simclr(size=None), form)
        values = batch.double() * (255 if batch.is_floating_point() else 1)
        torch.testing.assert_close(values, whole.double(), atol=1e-4, rtol=0)


def test_a_file_is_cut_as_image_folder_cuts_it(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "p.jpg", exif=_lying())
    data = ImageFolder(tmp_path, size=16, val_fraction=0, batch_size=1, num_workers=0)
    loaded = next(iter(data.train_dataloader()))
    assert torch.equal(to_images(simclr(), tmp_path / "p.jpg"), loaded)
    assert torch.equal(to_images(simclr(), Image.open(tmp_path / "p.jpg")), loaded)
    whole = to_images(simclr(size=None), tmp_path / "p.jpg")
    assert whole.shape == (1, 3, 40, 24)
    torch.testing.assert_close(to_images(simclr(), whole), loaded / 255, atol=0.05, rtol=0)  # a box of whole pixels


def _lying() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_gray_and_color_become_what_the_encoder_takes(picture, tmp_path):
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "p.png")
    gray = simclr(in_channels=1)
    for form in (
        tmp_path / "p.png",
        Image.fromarray(picture),
        picture[..., 0],
        picture[..., :1],
        picture[None, ..., 0],
    ):
        assert to_images(gray, form).shape == (1, 1, 16, 16)
    assert to_images(gray, np.zeros((5, 20, 20))).shape == (5, 1, 16, 16)
    colored = to_images(simclr(), picture[..., 0])
    assert colored.shape == (1, 3, 16, 16)
    assert torch.equal(colored[:, 0], colored[:, 2])
    many = to_images(simclr(), [tmp_path / "p.png", picture, Image.fromarray(picture), torch.rand(3, 9, 9)])
    assert many.shape == (4, 3, 16, 16)
    assert many.dtype == torch.float32
    assert many.amin() >= 0
    assert many.amax() <= 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there is no picture"),
        (torch.zeros(0, 3, 16, 16), "there is no picture"),
        (torch.rand(3, 16, 16) * 255, r"picture 0 is floats from .* to 25\d, expected \[0, 1\]; divide them by 255"),
        (torch.randn(2, 3, 16, 16), "expected .*; if they are normalized already, undo that"),
        (torch.full((3, 16, 16), torch.nan), "floats from nan to nan"),
        (torch.zeros(4, 16, 16), r"the shape \(4, 16, 16\), expected .* a tensor \(3, H, W\)"),
        (np.zeros((16, 16, 4), np.uint8), r"the shape \(16, 16, 4\), expected .* an array \(H, W, 3\)"),
        (torch.zeros(3, 16, 16, dtype=torch.int64), "picture 0 is torch.int64, expected torch.uint8, or float"),
        ([torch.zeros(3, 16, 16), 7], "picture 1 is a int, expected a path"),
        (7, "got a int, expected paths"),
        ("missing.png", "missing.png cannot be read as a picture"),
        ("folder", "folder is a folder; pass the files in it"),
        ("text.png", "text.png cannot be read as a picture"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_read_is_one_sentence(given, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=sentence) as error:
        simclr().embed(given)
    assert len(str(error.value).splitlines()) == 1


def test_a_truncated_picture_that_pil_has_opened_is_named_by_its_place(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "p.jpg")
    (tmp_path / "p.jpg").write_bytes((tmp_path / "p.jpg").read_bytes()[:-300])
    with pytest.raises(ValueError, match="picture 1 cannot be read"):
        to_images(simclr(), [picture, Image.open(tmp_path / "p.jpg")])


def test_without_a_known_size_pictures_must_agree(picture):
    with pytest.raises(ValueError, match="several shapes"):
        to_images(simclr(size=None), [picture, picture[:20]])


def test_embedding_needs_no_mode_and_leaves_every_flag(picture):
    method = simclr(size=None)
    method.projector.eval()
    flags = [m.training for m in method.modules()]
    state = torch.get_rng_state()
    one, both = method.embed(picture), method.embed([picture, 255 - picture], batch_size=1)
    assert [m.training for m in method.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert both.shape == (2, 8)
    assert not both.requires_grad
    assert torch.equal(one[0], both[0])  # whatever else is in the batch
    torch.testing.assert_close(method.embed([picture, 255 - picture]), both)


def test_sound_and_clips_are_taken_as_arrays_and_tensors():
    sound = CPC(encoder_args={"widths": [8] * 5}, context_args={"dim": 4})
    for form in (torch.zeros(3200), np.zeros(3200, np.int16), torch.zeros(1, 3200), torch.zeros(1, 1, 3200)):
        assert sound.embed(form).shape == (1, 4)
    with pytest.raises(ValueError, match="recording 0 is floats from .*full scale"):
        sound.embed(torch.linspace(0, 3000, 3200))
    with pytest.raises(ValueError, match="does not know the sample rate"):
        sound.embed("a.wav")
    video = CPC.video("conv4", size=16)
    frames = np.zeros((5, 20, 30, 3), np.uint8)
    for form in (frames, frames[None], torch.from_numpy(frames).permute(0, 3, 1, 2)):
        assert to_images(video, form).shape == (1, 5, 3, 16, 16)
    with pytest.raises(ValueError, match="files of video"):
        video.embed("a.mp4")


def test_normalization_that_is_undone_is_expected_of_floats_alone(picture):
    method = simclr(size=None, undo_normalization=([0.5] * 3, [0.5] * 3))
    floats = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(method.embed(floats), method.embed(picture))


def test_channels_without_a_mode_come_as_arrays_alone(picture, tmp_path):
    method = simclr(in_channels=4)
    assert to_images(method, np.zeros((20, 20, 4), np.uint8)).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match=r"picture 0 is a file .* takes 4; pass arrays \(H, W, 4\)"):
        to_images(method, tmp_path / "p.png")
