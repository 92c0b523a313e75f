"""Boxes of VOC's and COCO's files: corners, classes, what does not count, and files that are wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sslmodules.datamodules import COCOBoxes, VOCBoxes

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""


def write_picture(file, height=20, width=30):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(file)


def voc(root, stem, *objects, pictures="JPEGImages", annotations="Annotations"):
    """A picture and its XML file; objects are (name, difficult, x0, y0, x1, y1)."""
    write_picture(root / pictures / f"{stem}.jpg")
    keys = ("name", "difficult", "x0", "y0", "x1", "y1")
    found = "".join(OBJECT.format(**dict(zip(keys, o, strict=True))) for o in objects)
    (root / annotations).mkdir(exist_ok=True)
    (root / annotations / f"{stem}.xml").write_text(f"<annotation>{found}</annotation>")


def voc_list(root, name, *stems):
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(stems))
    return f"{root}/ImageSets/Main/{name}.txt"


def coco(root, split="train", **changes):
    """Two pictures, the first with three objects."""
    for name in ("a.jpg", "b.jpg"):
        write_picture(root / split / name)
    held = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10.5, 8], "iscrowd": 0},
            {"image_id": 7, "category_id": 4, "bbox": [25, 15, 10, 10], "iscrowd": 1},
            {"image_id": 7, "category_id": 4, "bbox": [5, 5, 0, 3], "iscrowd": 0},
        ],
    }
    (root / f"{split}.json").write_text(json.dumps(held | changes))
    return {"images": f"{root}/{{split}}", "annotations": f"{root}/{{split}}.json", "batch_size": 2, "num_workers": 0}


def test_voc_counts_pixels_from_1_and_its_difficult_objects_do_not_count(tmp_path):
    voc(tmp_path, "a", ("dog", 0, 1, 1, 30, 20), ("cat", 1, 3, 4, 5, 6))
    data = VOCBoxes(voc_list(tmp_path, "train", "a"), batch_size=1, num_workers=0)
    (image,), (target,) = next(iter(data.train_dataloader()))
    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[0, 0, 30, 20], [2, 3, 5, 6]]
    assert data.classes == ["cat", "dog"]
    assert target["labels"].tolist() == [1, 0]
    assert target["iscrowd"].tolist() == [False, True]


def test_a_voc_split_may_be_several_lists_or_a_folder(tmp_path):
    voc(tmp_path / "VOC2007", "a", ("dog", 0, 1, 1, 2, 2))
    voc(tmp_path / "VOC2012", "b", ("cat", 0, 1, 1, 2, 2))
    voc(tmp_path / "VOC2012", "unlisted", ("cow", 0, 1, 1, 2, 2))
    voc(tmp_path / "own", "c", ("dog", 0, 1, 1, 2, 2), pictures="", annotations="")
    data = VOCBoxes(
        [voc_list(tmp_path / "VOC2007", "train", "a"), voc_list(tmp_path / "VOC2012", "train", "b")],
        val=f"{tmp_path}/own",
    )
    (_, (target,)) = data.split("val").__getitems__([0])  # before anybody asks for train, whose classes hold
    assert target["labels"].tolist() == [1]
    assert data.classes == ["cat", "dog"]
    assert data.num_classes == 2
    assert len(data.split("train")) == 2


def test_coco_boxes_are_cut_to_the_picture_and_left_out_without_area(tmp_path):
    data = COCOBoxes(val=None, **coco(tmp_path))
    images, targets = data.split("train").__getitems__([0, 1])
    assert [image.shape for image in images] == [(3, 20, 30)] * 2
    assert targets[0]["boxes"].tolist() == [[1, 2, 11.5, 10], [25, 15, 30, 20]]
    assert data.classes == ["cat", "zebra"]
    assert targets[0]["labels"].tolist() == [1, 0]
    assert targets[0]["iscrowd"].tolist() == [False, True]
    assert targets[1]["boxes"].shape == (0, 4)
    assert targets[1]["labels"].dtype == torch.int64


def test_what_is_wrong_with_voc_files_is_named(tmp_path):
    voc(tmp_path, "a", ("dog", 0, 1, 1, 2, 2))
    voc(tmp_path, "b", ("fox", 0, 1, 1, 2, 2))
    train, val = voc_list(tmp_path, "train", "a"), voc_list(tmp_path, "val", "b")
    with pytest.raises(ValueError, match=r"b.jpg has a box of 'fox', which is none of the classes dog: pass classes="):
        VOCBoxes(train, val).setup("fit")
    with pytest.raises(FileNotFoundError, match="gone.txt' does not exist"):
        VOCBoxes(f"{tmp_path}/gone.txt").setup("fit")
    (tmp_path / "Annotations/b.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    with pytest.raises(ValueError, match=r"b.xml is no annotation as of VOC \(an object has no bndbox/xmin\)"):
        VOCBoxes(train, val).setup("fit")
    (tmp_path / "Annotations/b.xml").unlink()
    with pytest.raises(ValueError, match="1 of 1 pictures have no XML file in .*: b; add them"):
        VOCBoxes(train, val).setup("fit")
    with pytest.raises(ValueError, match="the val split of VOCBoxes holds no image"):
        VOCBoxes(train, voc_list(tmp_path, "empty")).setup("fit")


def test_what_is_wrong_with_coco_files_is_named(tmp_path):
    arguments = coco(tmp_path)
    coco(tmp_path, "val", categories=[{"id": 4, "name": "cat"}, {"id": 90, "name": "okapi"}])
    with pytest.raises(ValueError, match="a.jpg has a box of 'okapi', which is none of the classes cat, zebra"):
        COCOBoxes(**arguments).setup("fit")
    coco(tmp_path, "val", images=[{"id": 3, "file_name": "gone.jpg"}], annotations=[])
    with pytest.raises(ValueError, match="1 of 1 pictures have no file in .*val': gone.jpg"):
        COCOBoxes(**arguments).setup("fit")
    coco(tmp_path, "val", annotations=[{"image_id": 99, "category_id": 4, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(ValueError, match=r"val.json is no JSON file as of COCO \(KeyError: 99\)"):
        COCOBoxes(**arguments).setup("fit")
    with pytest.raises(ValueError, match="no path says {split}"):
        COCOBoxes(f"{tmp_path}/train", f"{tmp_path}/train.json")
