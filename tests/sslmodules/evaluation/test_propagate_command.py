"""``sslmodules propagate``: masks, clip and table of videos that are made here."""

import json
import shutil

import numpy as np
import pytest
import torch
from method_list import METHODS
from PIL import Image
from runs import trainer

from sslmodules import DINO, Rotation
from sslmodules.cli.functions import propagate
from sslmodules.encoders import export_weights
from sslmodules.evaluation.davis import boundary_accuracy, region_similarity, statistics
from sslmodules.evaluation.looking import looked_by, only_shape

HEIGHT, WIDTH, FRAMES = 24, 40, 5
PALETTE = [0, 0, 0, 10, 200, 30, 250, 240, 0]
RED, BLUE = (220, 20, 20), (20, 20, 220)


def frame(number):
    """A red square that moves by 2 px a frame, above a blue bar that stands still; the frame, and its mask."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    picture += np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, color, box in ((1, RED, np.s_[4:12, 4 + 2 * number : 12 + 2 * number]), (2, BLUE, np.s_[16:20, 8:32])):
        picture[box], mask[box] = color, value
    return Image.fromarray(picture), Image.fromarray(mask)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data set of two sequences: indexed masks of two objects, and the red square alone in a mask of 0 and 255."""
    monkeypatch.chdir(tmp_path)
    for name in ("both", "square"):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / "davis" / kind / "480p" / name).mkdir(parents=True)
        for number in range(FRAMES):
            picture, mask = frame(number)
            mask.putpalette(PALETTE)
            if name == "square":
                mask = Image.fromarray(np.where(np.asarray(mask) == 1, 255, 0).astype(np.uint8))
            picture.save(tmp_path / f"davis/JPEGImages/480p/{name}/{number:05d}.webp", lossless=True)
            mask.save(tmp_path / f"davis/Annotations/480p/{name}/{number:05d}.png")
    (tmp_path / "davis/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "davis/ImageSets/2017/val.txt").write_text("both\nsquare\n")
    return tmp_path


def saved(folder, method):
    fitter = trainer(folder, max_steps=1)
    fitter.strategy.connect(method)
    fitter.save_checkpoint(folder / "method.ckpt")


@pytest.fixture
def tracking(root):
    """A checkpoint, of an encoder whose first stage tells colours apart also at random initialisation."""
    torch.manual_seed(0)
    method = Rotation("conv4", encoder_args={"widths": (16,)})
    saved(root, method)
    return root


def arguments(**options):
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def video(**options):
    folder = "davis/{}/480p/both"
    given = {"frames": folder.format("JPEGImages"), "mask": folder.format("Annotations") + "/00000.png", "out": "out"}
    propagate("propagate", arguments(**{**given, **options}))


def dataset(**options):
    propagate("propagate", arguments(**{"davis": "davis", "split": "2017/val", "out": "out", **options}))


def read(path):
    return torch.from_numpy(np.array(Image.open(path)))


def test_masks_of_a_video_keep_values_size_and_palette(tracking, capsys):
    video(ckpt="method.ckpt", size=HEIGHT, radius=3)
    assert "5 masks and overlay.webp in out" in capsys.readouterr().out
    assert sorted(p.name for p in (tracking / "out").iterdir()) == [*(f"{i:05d}.png" for i in range(5)), "overlay.webp"]
    for number in range(FRAMES):
        image = Image.open(tracking / f"out/{number:05d}.png")
        assert (image.mode, image.size) == ("P", (WIDTH, HEIGHT))
        assert image.getpalette()[:9] == PALETTE
        found, true = np.asarray(image), np.asarray(frame(number)[1])
        for value in (1, 2):
            j = region_similarity(*(torch.from_numpy(m == value) for m in (found, true)))
            assert j > 0.85  # 0.14 is left of the square's overlap with its place in the first frame
    clip = Image.open(tracking / "out/overlay.webp")
    assert (clip.n_frames, clip.size) == (FRAMES, (WIDTH, HEIGHT))
    clip.seek(4)
    shown = np.asarray(clip.convert("RGB")).astype(int)
    assert np.abs(shown[6:10, 14:18].mean((0, 1)) - (np.array(RED) + PALETTE[3:6]) / 2).max() < 25
    assert np.abs(shown[17:19, 12:28].mean((0, 1)) - (np.array(BLUE) + PALETTE[6:9]) / 2).max() < 25


def test_table_and_results_are_those_of_the_written_masks(tracking, capsys):
    dataset(ckpt="method.ckpt", size=HEIGHT, radius=3)
    results = json.loads((tracking / "out/results.json").read_text())
    means = []
    for name, values in (("both", (1, 2)), ("square", (255,))):
        for value in values:
            masks = [
                torch.stack([read(tracking / folder / name / f"{i:05d}.png") == value for i in range(1, FRAMES - 1)])
                for folder in ("out", "davis/Annotations/480p")
            ]
            for letter, measure in (("J", region_similarity), ("F", boundary_accuracy)):
                expected = statistics(measure(*masks))._asdict()
                assert results["sequences"][name][str(value)][letter] == pytest.approx(expected)
            means.append(region_similarity(*masks).mean().item())
    assert results["mean over objects"]["J"]["mean"] == pytest.approx(np.mean(means))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"mean over objects   {np.mean(means):9.1%}")


def test_identity_copies_the_first_mask(root):
    dataset(baseline="identity")
    results = json.loads((root / "out/results.json").read_text())["sequences"]
    assert results["both"]["2"]["J"] == results["both"]["2"]["F"] == {"mean": 1, "recall": 1, "decay": 0}
    overlaps = [(8 - 2 * i) / (8 + 2 * i) for i in (1, 2, 3)]
    assert results["both"]["1"]["J"]["mean"] == pytest.approx(np.mean(overlaps))
    assert results["square"]["255"]["J"] == results["both"]["1"]["J"]


def test_frames_smaller_than_the_masks_give_masks_as_large_as_the_first(root):
    small = root / "davis/JPEGImages/240p"
    shutil.copytree(root / "davis/JPEGImages/480p", small)
    for file in small.rglob("*.webp"):
        Image.open(file).resize((WIDTH // 2, HEIGHT // 2)).save(file, lossless=True)
    dataset(encoder="conv4", baseline="untrained", size=HEIGHT, resolution="240p", annotations="480p", stage=0)
    assert Image.open(root / "out/both/00003.png").size == (WIDTH, HEIGHT)


def test_untrained_baseline_is_the_method_anew(root):
    masks = {}
    method = Rotation("conv4", encoder_args={"widths": (4, 8)})
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.zero_()
    saved(root, method)
    for name, options in {"zero": {}, "first": {"baseline": "untrained"}, "other": {"baseline": "untrained"}}.items():
        seed = 1 if name == "other" else 0
        video(ckpt="method.ckpt", size=HEIGHT, out=name, seed=seed, **options)
        masks[name] = read(root / name / "00004.png")
    video(ckpt="method.ckpt", size=HEIGHT, out="again", baseline="untrained")
    assert torch.equal(read(root / "again/00004.png"), masks["first"])
    assert not torch.equal(masks["zero"], masks["first"])
    assert not torch.equal(masks["other"], masks["first"])


def test_published_weights_and_stages(root):
    export_weights(Rotation("resnet18-cifar").encoder, root / "resnet.pt")
    video(ckpt="resnet.pt", encoder="resnet18-cifar", size=HEIGHT, stage=1)
    assert (root / "out/00004.png").exists()


def test_video_files_are_read(tracking):
    av = pytest.importorskip("av")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.bit_rate = WIDTH, HEIGHT, 1_000_000
        for number in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(number)[0])))
        container.mux(stream.encode(None))
    video(frames="clip.mp4", ckpt="method.ckpt", size=HEIGHT, radius=3)
    assert len(list((tracking / "out").glob("*.png"))) == FRAMES
    found, true = read(tracking / "out/00004.png"), torch.from_numpy(np.array(frame(4)[1]))
    assert region_similarity(found == 1, true == 1) > 0.7


def test_dino_shows_its_teacher(root):
    sizes = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    crops = {"size": 16, "local_size": 8, "local_crops": 2, "hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16}
    method = DINO("vit_tiny_patch16_224", encoder_args=sizes, **crops)
    with torch.no_grad():
        for parameter in method.teacher_encoder.parameters():
            parameter.zero_()
    looked = looked_by(method, "a.ckpt")
    x = torch.rand(1, 3, 16, 24)
    assert looked.map(x).shape == (1, 24, 4, 6)
    assert not looked.map(x).any()


PICTURED = [name for name, method in METHODS.items() if method().input_kind != "sound"]


@pytest.mark.parametrize("name", PICTURED)
def test_every_method_has_a_map_of_a_frame(name):
    looked = looked_by(METHODS[name](), "a.ckpt")
    looked.to(torch.device("cpu"))
    height, width = only_shape(looked.encoder) or (16, 24)
    frames = torch.zeros(1, 3 if looked.mode == "RGB" else 1, height, width, dtype=torch.uint8)
    with torch.no_grad():
        found = looked.map(frames)
    assert found.ndim == 4
    assert 1 < found.shape[2] == found.shape[3] * height // width


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"davis": "davis"}, "pass --frames and --mask of a video, or --davis"),
        ({"frames": "nowhere"}, "--frames nowhere: there is no such folder"),
        ({"frames": "empty"}, "--frames empty: there is no picture in it"),
        ({"frames": "twice"}, "twice/1.png are frames of one name; keep one"),
        ({"frames": "broken"}, "broken/1.jpg cannot be read as a picture"),
        ({"frames": "broken/1.jpg"}, "broken/1.jpg cannot be read as a video"),
        ({"mask": "nothing.png"}, "nothing.png cannot be read as a mask"),
        ({"mask": "rgb.png"}, "rgb.png is a PNG of mode RGB; expected the mask as an indexed"),
        ({"mask": "grey.jpg"}, "grey.jpg is a JPEG of mode L"),
        ({"mask": "black.png"}, "black.png shows no object"),
        ({"mask": "wide.png"}, "the first mask is 48x24 px and frame 00000 is 40x24 px"),
        ({"baseline": None}, "pass --ckpt; without it there are --baseline identity"),
        ({"baseline": "untrained"}, "pass --ckpt; without it"),
        ({"baseline": "untrained", "ckpt": "rgb.png"}, "rgb.png cannot be read as tensors and plain values"),
        ({"baseline": None, "ckpt": "nothing.ckpt"}, "nothing.ckpt: there is no such file"),
        ({"out": "davis"}, "--out davis exists and is no empty folder"),
        ({"out": "davis/JPEGImages/480p/both/masks"}, "masks lies in --frames"),
    ],
)
def test_bad_input_gets_one_sentence(root, options, sentence):
    for folder in ("empty", "twice", "broken"):
        (root / folder).mkdir()
    for name in ("twice/1.png", "twice/1.bmp", "rgb.png"):
        frame(0)[0].save(root / name)
    (root / "broken/1.jpg").write_bytes(b"none")
    frame(0)[1].convert("L").save(root / "grey.jpg")
    Image.new("L", (WIDTH, HEIGHT)).save(root / "black.png")
    Image.new("L", (48, 24), 1).save(root / "wide.png")
    given = {"baseline": "identity", **options}
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        video(**{name: value for name, value in given.items() if value is not None})
    assert not (root / "out").exists()


def test_a_data_set_that_lacks_something_is_refused(root):
    with pytest.raises(ValueError, match=r"--split val: there is no davis/ImageSets/val.txt; there is 2017/val"):
        dataset(split="val", baseline="identity")
    (root / "davis/Annotations/480p/square/00002.png").unlink()
    with pytest.raises(ValueError, match="sequence square has 5 frames and 4 masks"):
        dataset(baseline="identity")
    shutil.rmtree(root / "davis/Annotations/480p/square")
    with pytest.raises(ValueError, match="davis/Annotations/480p/square: there is no such folder"):
        dataset(baseline="identity")
