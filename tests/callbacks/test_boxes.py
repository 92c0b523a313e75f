"""Detected objects as COCO's results."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import trainer

from sslmodules import Detection
from sslmodules.callbacks import BoxWriter
from sslmodules.datamodules import COCOBoxes, ImageFolder

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16, 32)}, "min_size": 32, "max_size": 64, "width": 16}


class Bright(Detection):
    """Finds what is white, by hand, so that a test knows where it is."""

    def detect(self, images):
        found = []
        for image in images:
            y, x = torch.nonzero(image.float().mean(0) > 200).unbind(1)
            corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            found.append(
                {"boxes": torch.tensor([corners]).float(), "labels": torch.tensor([1]), "scores": torch.tensor([0.75])}
            )
        return found


@pytest.fixture
def photos(tmp_path):
    """Two pictures with a white box in each, and where that is: x, y, width, height."""
    boxes = {"tall.png": [20, 60, 40, 30], "wide.png": [100, 10, 60, 20]}
    (tmp_path / "photos").mkdir()
    for (name, (x, y, w, h)), shape in zip(boxes.items(), [(120, 80), (60, 200)], strict=True):
        pixels = np.zeros((*shape, 3), dtype=np.uint8)
        pixels[y : y + h, x : x + w] = 255
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return boxes


@pytest.mark.parametrize("size", [None, 40])
def test_boxes_are_in_pixels_of_the_picture_that_was_read(tmp_path, photos, size):
    module = Bright(**TINY, class_names=["cat", "dog"]).eval()
    data = ImageFolder(str(tmp_path / "photos"), size=size, batch_size=4, num_workers=0)
    trainer(tmp_path, callbacks=[BoxWriter(str(tmp_path / "b.json"))]).predict(module, datamodule=data)
    results = json.loads((tmp_path / "b.json").read_text())
    for place, (result, (name, box)) in enumerate(zip(results, photos.items(), strict=True)):
        assert result["bbox"] == pytest.approx(box, abs=0 if size is None else 4)
        assert result == {
            "image_id": place,
            "file_name": str(tmp_path / "photos" / name),
            "category_id": 1,
            "category": "dog",
            "bbox": result["bbox"],
            "score": 0.75,
        }


def test_pictures_of_a_test_set_are_predicted_as_well(tmp_path, photos):
    held = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(photos)],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [{"image_id": i, "category_id": 7, "bbox": box} for i, box in enumerate(photos.values())],
    }
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(held))
    data = COCOBoxes(str(tmp_path / "photos"), str(tmp_path / "{split}.json"), batch_size=2, num_workers=0)
    module = Bright(**TINY, num_classes=2).eval()
    trainer(tmp_path, callbacks=[BoxWriter(str(tmp_path / "b.json"))]).predict(module, datamodule=data)
    results = json.loads((tmp_path / "b.json").read_text())
    assert [result["bbox"] for result in results] == list(photos.values())


def test_what_a_real_detector_finds_is_json_with_nothing_in_it_too(tmp_path, photos):
    module = Detection(**TINY, num_classes=2, detector_args={"box_score_thresh": 1.1}).eval()
    data = ImageFolder(str(tmp_path / "photos"), batch_size=4, num_workers=0)
    trainer(tmp_path, callbacks=[BoxWriter(str(tmp_path / "b.json"))]).predict(module, datamodule=data)
    assert json.loads((tmp_path / "b.json").read_text()) == []
