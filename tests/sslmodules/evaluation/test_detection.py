"""Detection: pyramids, boxes that go where images go, precision by hand, and runs on a handful of pictures."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import same_bits, snapshot, trainer
from torch.utils.data import DataLoader
from torchvision.io import write_png

from sslmodules import Detection, load
from sslmodules.datamodules import COCOBoxes
from sslmodules.encoders import create_encoder
from sslmodules.evaluation.detection import mirror
from sslmodules.evaluation.pyramid import SimplePyramid

pytest.importorskip("pycocotools")

TINY = {
    "encoder": "conv4",
    "encoder_args": {"widths": (8, 16, 32)},
    "min_size": 32,
    "max_size": 64,
    "width": 16,
    "detector_args": {
        "box_batch_size_per_image": 32,
        "rpn_pre_nms_top_n_train": 200,
        "rpn_post_nms_top_n_train": 100,
        "rpn_post_nms_top_n_test": 100,
    },
}
VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2},
    "size": 32,
}


def scenes(count=4, side=32):
    """Grey pictures with one bright square (class 0) and one dark bar (class 1), and their boxes."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        image = torch.randint(110, 140, (3, side, side), generator=generator)
        x, y, u = torch.randint(0, 6, (3,), generator=generator).tolist()
        image[:, y : y + 10, x : x + 10] = 250
        image[:, 22:28, u + 5 : u + 21] = 10
        boxes = torch.tensor([[x, y, x + 10, y + 10], [u + 5, 22, u + 21, 28]]).float()
        found.append((image.to(torch.uint8), {"boxes": boxes, "labels": torch.tensor([0, 1])}))
    return found


def loader(items, batch_size=2):
    return DataLoader(items, batch_size, collate_fn=lambda batch: tuple(map(list, zip(*batch, strict=True))))


def built(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Detection(**{**TINY, "num_classes": 2, **kwargs})


# --- networks -----------------------------------------------------------------------------------------------------


def test_a_convolutional_encoder_bears_a_pyramid_on_its_last_four_stages():
    module = Detection(encoder="resnet10t", num_classes=2, width=8)
    assert [m.shape[1:] for m in module.read(torch.zeros(1, 3, 64, 64))] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]
    levels = module.heads[0].backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in levels.values()] == [(8, s, s) for s in (16, 8, 4, 2, 1)]
    assert module.anchor_sizes == [32, 64, 128, 256, 512]


def test_a_transformer_bears_the_simple_pyramid_with_strides_of_a_quarter_to_four_patches():
    module = built(**VIT, min_size=32)
    levels = module.heads[0].backbone(torch.zeros(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in levels.values()] == [(16, s, s) for s in (32, 16, 8, 4, 2)]
    assert module.anchor_sizes == [8, 16, 32, 64, 128]
    assert len(module.eval().detect([torch.zeros(3, 30, 45)])) == 1


def test_each_level_of_the_simple_pyramid_covers_the_place_of_the_map_that_it_comes_from():
    pyramid = SimplePyramid(8, width=4).eval()
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 4, 2] += 1
    for factor, a, b in zip((4, 2, 1, 0.5), pyramid([x]).values(), pyramid([changed]).values(), strict=False):
        rows, columns = torch.nonzero((a - b).abs().amax((0, 1)) > 1e-6).unbind(1)
        assert rows.min() >= int(4 * factor) - 1
        assert rows.max() <= int(4 * factor + max(factor, 1)) - 1 + 1
        assert columns.min() >= int(2 * factor) - 1
        assert columns.max() <= int(2 * factor + max(factor, 1)) - 1 + 1


def test_patches_whose_strides_are_no_powers_of_2_and_a_wrong_count_of_anchors_are_refused():
    with pytest.raises(ValueError, match="stride 6, and torchvision's detectors take powers of 2"):
        built(**{**VIT, "encoder_args": {**VIT["encoder_args"], "patch_size": 6}, "size": 30})
    with pytest.raises(ValueError, match=r"anchor_sizes are 2, expected 4, .* strides \[1, 2, 4, 8\]"):
        built(anchor_sizes=[8, 16])


def test_the_encoder_is_fed_as_in_pretraining_and_stands_once_among_the_weights():
    encoder = create_encoder("conv4", widths=(8, 16, 32))
    module = built(encoder=encoder, encoder_args=None, mean=[0.5] * 3, std=[0.25] * 3, min_size=16).eval()
    fed = []
    encoder.stages[0].register_forward_pre_hook(lambda _, x: fed.append(x[0]))
    module.detect([torch.full((3, 16, 16), 255, dtype=torch.uint8)])
    torch.testing.assert_close(fed[-1][..., :16, :16], torch.full((1, 3, 16, 16), 2.0))
    assert (fed[-1][..., 16:] == 0).all()  # filled up with the mean colour
    assert not any("encoder" in name for name in module.heads.state_dict())


# --- boxes --------------------------------------------------------------------------------------------------------


def test_mirrored_boxes_hold_what_they_held():
    image, target = scenes(1)[0]
    flipped, moved = mirror(image, target)
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in zip(target["boxes"].int(), moved["boxes"].int(), strict=True):
        assert torch.equal(flipped[:, v0:v1, u0:u1].flip(2), image[:, y0:y1, x0:x1])


def test_precision_is_that_of_cases_by_hand(tmp_path):
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = {"boxes": boxes, "labels": torch.tensor([0, 0])}
    one_of_two = {"boxes": boxes[:1], "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    module = built().eval()
    module.detect = lambda images: [one_of_two] * len(images)
    t = trainer(tmp_path)

    def measured(target):
        return t.validate(module, loader([(torch.zeros(3, 32, 32), target)]), verbose=False)[0]

    half = measured(truth)
    assert half["val/map"] == pytest.approx(51 / 101)  # precision 1 at the recalls 0, 0.01, ..., 0.5 of 101
    assert half["val/map/0"] == half["val/map"]
    assert "val/map/1" not in half  # a class that does not occur
    crowd = measured(truth | {"iscrowd": torch.tensor([False, True])})
    assert crowd["val/map"] == 1
    shifted = measured({"boxes": torch.tensor([[0.0, 0, 10, 16]]), "labels": torch.tensor([0])})
    assert shifted["val/map_50"] == 1  # IoU 0.625: counts at 0.5, 0.55, 0.6
    assert shifted["val/map_75"] == 0
    assert shifted["val/map"] == pytest.approx(0.3)


def test_crowds_take_no_part_in_training():
    module = built(train_encoder=False).train()
    image, target = scenes(1)[0]
    crowd = {
        "boxes": torch.cat([target["boxes"], torch.tensor([[0.0, 0.0, 32.0, 32.0]])]),
        "labels": torch.tensor([0, 1, 1]),
        "iscrowd": torch.tensor([0, 0, 1]),
    }
    losses = []
    for objects in (target, crowd):
        torch.manual_seed(0)
        losses.append(module.loss(([module.preprocess(image[None])[0]], [objects]))["loss"])
    assert losses[0] == losses[1]


# --- runs ---------------------------------------------------------------------------------------------------------


def test_it_learns_four_pictures_by_heart(tmp_path):
    module = built(optimizer=partial(torch.optim.AdamW, lr=3e-3), lr_scheduler=constant)
    t = trainer(tmp_path, max_epochs=45)
    t.fit(module, loader(scenes(), 4))
    found = t.validate(module, loader(scenes(), 4), verbose=False)[0]
    assert found["val/map_50"] > 0.9
    drawn = module.pictures(*zip(*scenes(), strict=True))["detection"].images
    assert drawn.shape == (4, 3, 3, 32, 32)


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def test_a_frozen_encoder_stays_to_the_bit_with_sizes_mixed_and_pictures_without_objects(tmp_path):
    items = [*scenes(2), (torch.zeros(3, 20, 40), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()})]
    module = built(train_encoder=False)
    encoder, heads = snapshot(module.encoder), snapshot(module.heads)
    t = trainer(tmp_path, max_steps=2)
    t.fit(module, loader(items, 3), loader(items, 2))
    assert same_bits(encoder, module.encoder.state_dict())
    assert not same_bits(heads, module.heads.state_dict())
    assert not any(part.training for part in module.train().encoder.modules())
    t.save_checkpoint(tmp_path / "run.ckpt")
    again = load(tmp_path / "run.ckpt")
    assert same_bits(again.state_dict(), module.state_dict())


def test_a_run_that_stopped_in_the_middle_of_an_epoch_goes_on_as_if_it_had_not(tmp_path):
    (tmp_path / "pictures").mkdir()
    held = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "square"}, {"id": 1, "name": "bar"}]}
    for number, (image, target) in enumerate(scenes(6)):
        write_png(image, f"{tmp_path}/pictures/{number}.png")
        held["images"].append({"id": number, "file_name": f"{number}.png"})
        for (x0, y0, x1, y1), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            held["annotations"].append({"image_id": number, "category_id": label, "bbox": box})
    (tmp_path / "boxes.json").write_text(json.dumps(held))

    def run(folder, ckpt=None):
        module = built(min_size=[24, 32])
        data = COCOBoxes(f"{tmp_path}/pictures", f"{tmp_path}/boxes.json", val=None, batch_size=2, num_workers=0)
        every = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        t = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[every])
        torch.manual_seed(5)
        t.fit(module, datamodule=data, ckpt_path=ckpt)
        return snapshot(module)

    assert same_bits(run("whole"), run("resumed", tmp_path / "whole" / "step=2.ckpt"))


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (
            {"image": torch.zeros(2, 3, 8, 8), "label": torch.zeros(2)},
            "the batch is a dict, expected a list of images and one of mappings",
        ),
        (([torch.zeros(1, 8, 8)], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}]), "images have 1 channels"),
        (
            ([torch.zeros(3, 8, 8)], [{"boxes": torch.ones(1, 4), "labels": torch.zeros(1)}]),
            "the boxes of 1 labels are",
        ),
        (
            ([torch.zeros(3, 8, 8)], [{"boxes": torch.tensor([[0, 0, 1, 1]]), "labels": torch.tensor([2])}]),
            r"the labels of boxes are \[2\], expected numbers from 0 below the number of classes, 2",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_one_sentence(batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        built().check_batch(batch)
