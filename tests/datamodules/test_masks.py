"""Folders of pictures and masks: who belongs to whom, what counts, and how sizes meet in a batch."""

import numpy as np
import pytest
import torch
from PIL import Image

from sslmodules.datamodules import MaskFolder
from sslmodules.datamodules.masks import read_mask


def write(folder, name, array, **kwargs):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(folder / name, **kwargs)


def picture(value, height=4, width=6):
    return np.full((height, width, 3), value)


def camvid(root, splits=("train", "val"), count=3):
    """Pictures whose grey value is their number; the first pixel of a mask is it too, the others are of class 1."""
    for split in splits:
        for i in range(count):
            write(root / split, f"{i}.png", picture(i))
            mask = np.ones((4, 6))
            mask[0, 0] = i
            write(root / f"{split}annot", f"{i}.png", mask)
    return {"images": f"{root}/{{split}}", "masks": f"{root}/{{split}}annot", "batch_size": 2, "num_workers": 0}


def test_a_mask_belongs_to_the_picture_of_its_name(tmp_path):
    data = MaskFolder(classes=3, **camvid(tmp_path))
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 4, 6)
    assert images.dtype == torch.uint8
    assert masks.shape == (2, 4, 6)
    assert masks.dtype == torch.int64
    assert masks[:, 0, 0].tolist() == images[:, 0, 0, 0].tolist()
    assert (masks[:, 1:] == 1).all()
    assert data.num_classes == 3
    assert data.classes == ["0", "1", "2"]
    assert [len(masks) for _, masks in data.val_dataloader()] == [2, 1]


def test_lists_say_which_pictures_and_in_which_order(tmp_path):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "JPEGImages", f"{name}.jpg", picture(9))
    for value, name in enumerate(("b", "c", "d")):
        write(tmp_path / "SegmentationClass", f"{name}.png", np.full((4, 6), value))
    (tmp_path / "train.txt").write_text("d\n\nb 1\n")
    (tmp_path / "val.txt").write_text("c\n")
    data = MaskFolder(
        f"{tmp_path}/JPEGImages",
        f"{tmp_path}/SegmentationClass",
        ["x", "y", "z"],
        lists=f"{tmp_path}/{{split}}.txt",
        num_workers=0,
    )
    _, masks = data.split("train").__getitems__([0, 1])
    assert masks[:, 0, 0].tolist() == [2, 0]
    assert next(iter(data.test_dataloader()))[1].unique().tolist() == [1]  # test is val


def test_ignored_numbers_become_255_and_the_first_class_becomes_0(tmp_path):
    write(tmp_path, "mask.png", [[0, 1, 2], [11, 255, 2]])
    assert read_mask(f"{tmp_path}/mask.png", 3, ignore=11).tolist() == [[0, 1, 2], [255, 255, 2]]
    write(tmp_path, "from_one.png", [[0, 1, 2]])
    assert read_mask(f"{tmp_path}/from_one.png", 2, first_class=1).tolist() == [[255, 0, 1]]


def test_a_palette_gives_its_numbers_and_not_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 3]], dtype=np.uint8), mode="P")
    image.putpalette([200, 100, 50] * 256)
    image.save(tmp_path / "mask.png")
    assert read_mask(f"{tmp_path}/mask.png", 4).tolist() == [[0, 3]]


def test_smaller_pictures_are_filled_up_to_the_largest_of_their_batch(tmp_path):
    for name, (height, width) in {"a": (4, 6), "b": (7, 3)}.items():
        write(tmp_path / "image", f"{name}.png", picture(50, height, width))
        write(tmp_path / "mask", f"{name}.png", np.zeros((height, width)))
    data = MaskFolder(f"{tmp_path}/image", f"{tmp_path}/mask", 2, val=None, num_workers=0)
    images, masks = data.split("train").__getitems__([0, 1])
    assert images.shape == (2, 3, 7, 6)
    for image, mask, (height, width) in zip(images, masks, ((4, 6), (7, 3)), strict=True):
        inside = torch.zeros(7, 6, dtype=torch.bool)
        inside[:height, :width] = True
        assert (mask == torch.where(inside, 0, 255)).all()
        assert (image == torch.where(inside, 50, 0)).all()


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((4, 6), 7), "1.png holds the number 7, expected 0 to 2 for 3 classes"),
        (np.zeros((4, 6, 3)), "1.png has 3 channels, expected one of class numbers"),
        (np.zeros((4, 5)), "1.png is 4x5 px and .*1.png 4x6"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_that_does_not_fit_is_named(tmp_path, array, sentence, workers):
    arguments = camvid(tmp_path) | {"num_workers": workers}
    write(tmp_path / "valannot", "1.png", array)
    with pytest.raises(ValueError, match=sentence):
        list(MaskFolder(classes=3, **arguments).val_dataloader())


def test_a_file_that_is_no_mask_is_named(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0.png cannot be read as a mask"):
        read_mask(f"{tmp_path}/0.png", 3)


def test_pictures_without_a_mask_are_named(tmp_path):
    arguments = camvid(tmp_path)
    write(tmp_path / "train", "lonely.png", picture(0))
    with pytest.raises(ValueError, match=r"1 of 4 pictures have no mask in .*trainannot': lonely; add them"):
        MaskFolder(classes=3, **arguments).setup("fit")


def test_listed_pictures_that_are_missing_are_named(tmp_path):
    arguments = camvid(tmp_path)
    (tmp_path / "train.txt").write_text("0\ngone\n")
    with pytest.raises(ValueError, match="1 of 2 pictures have no file in .*: gone"):
        MaskFolder(classes=3, lists=f"{tmp_path}/{{split}}.txt", **arguments).split("train")


def test_an_empty_split_a_missing_folder_and_equal_splits_are_one_sentence(tmp_path):
    arguments = camvid(tmp_path, splits=["train"])
    with pytest.raises(FileNotFoundError, match="images='.*val' does not exist"):
        MaskFolder(classes=3, **arguments).setup("fit")
    (tmp_path / "val").mkdir()
    (tmp_path / "valannot").mkdir()
    with pytest.raises(ValueError, match="the val split of MaskFolder holds no image"):
        MaskFolder(classes=3, **arguments).setup("fit")
    with pytest.raises(ValueError, match="no path says {split}"):
        MaskFolder(f"{tmp_path}/train", f"{tmp_path}/trainannot", 3)
    with pytest.raises(ValueError, match="classes are 1, expected 2 to 255"):
        MaskFolder(**(arguments | {"classes": ["only"]}))


def test_a_loader_goes_on_where_it_stopped(tmp_path):
    arguments = camvid(tmp_path, count=8)
    batches = [images[:, 0, 0, 0].tolist() for images, _ in MaskFolder(classes=8, **arguments).train_dataloader()]
    stopped = MaskFolder(classes=8, **arguments).train_dataloader()
    place = iter(stopped)
    next(place)
    state = stopped.state_dict()
    resumed = MaskFolder(classes=8, **arguments).train_dataloader()
    resumed.load_state_dict(state)
    assert [images[:, 0, 0, 0].tolist() for images, _ in resumed] == batches[1:]
