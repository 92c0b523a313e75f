"""Segmentation: what counts, that image and mask stay together, and that a frozen encoder stays as it was."""

import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import same_bits, snapshot, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop as reference_crop

from sslmodules import SemanticSegmentation, SimCLR, load
from sslmodules.callbacks import Pictures
from sslmodules.datamodules import MaskFolder
from sslmodules.evaluation.segmentation import (
    intersection_over_union,
    nearest_crop,
    scaled_boxes,
    segmentation_loss,
)

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}
VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
}


def shapes(count=16, side=24, seed=0):
    """Dark images with a bright square (class 1) and a striped one (class 2), their borders not counted."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, side, side), generator=generator)
    masks = torch.zeros(count, side, side, dtype=torch.long)
    places = torch.randint(0, side // 2 - 8, (count, 2, 2), generator=generator)
    stripes = 120 * (torch.arange(8) % 2)
    for image, mask, ((y, x), (y2, x2)) in zip(images, masks, places.tolist(), strict=True):
        image[:, y : y + 8, x : x + 8] += 150
        mask[y : y + 8, x : x + 8] = 1
        image[:, y2 + side // 2 : y2 + side // 2 + 8, x2 : x2 + 8] += stripes
        mask[y2 + side // 2 : y2 + side // 2 + 8, x2 : x2 + 8] = 2
    masks[:, 0] = 255
    return TensorDataset(images.to(torch.uint8), masks)


def loader(**kwargs):
    return DataLoader(shapes(**kwargs), 8)


def built(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SemanticSegmentation(**{**TINY, "num_classes": 3, **kwargs})


# --- the mathematics ----------------------------------------------------------------------------------------------


def test_iou_is_that_of_torchmetrics_and_nan_where_a_class_does_not_occur():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 3, (2, 9, 9), generator=generator) for _ in range(2))
    truth[0, :4] = 255
    counted = truth != 255
    confusion = torch.zeros(4, 4).index_put(
        (truth[counted], predicted[counted]), torch.ones(int(counted.sum())), accumulate=True
    )
    iou = intersection_over_union(confusion)
    reference = MulticlassJaccardIndex(4, average="none", ignore_index=255)(predicted, truth)
    torch.testing.assert_close(iou[:3], reference[:3])
    assert iou[3].isnan()


def test_loss_is_the_mean_over_the_pixels_that_count():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    masks = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    masks[0] = 255
    by_hand = -logits[1].log_softmax(0).gather(0, masks[1:]).mean()
    torch.testing.assert_close(segmentation_loss(logits, masks), by_hand)
    nothing = segmentation_loss(logits, torch.full_like(masks, 255))
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


def test_masks_are_cut_as_torchvision_does_without_mixing():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 9, (6, 17, 23), generator=generator)
    boxes = torch.tensor([[0, 0, 17, 23], [3, 5, 7, 4], [10, 0, 7, 23], [16, 22, 1, 1], [2, 2, 12, 15], [0, 9, 5, 5]])
    flip = torch.tensor([False, True, False, True, True, False])
    crops = nearest_crop(masks, boxes, (8, 11), flip)
    for crop, mask, box, mirrored in zip(crops, masks, boxes.tolist(), flip, strict=True):
        expected = reference_crop(mask[None], *box, [8, 11], InterpolationMode.NEAREST_EXACT)[0]
        assert torch.equal(crop, expected.flip(1) if mirrored else expected)


def test_boxes_have_the_size_of_the_scale_and_lie_in_what_is_labeled():
    masks = torch.full((400, 40, 60), 255)
    masks[:200] = 0
    masks[200:, :30, :20] = 1  # the rest fills the batch up
    boxes = scaled_boxes(masks, (20, 10), (0.5, 2.0), torch.Generator().manual_seed(0))
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (boxes[:, :2] >= 0).all()
    assert (ends[:200] <= torch.tensor([40, 60])).all()
    assert (ends[200:] <= torch.tensor([30, 20])).all()
    assert boxes[:200, 2:].amin(0).tolist() == [10, 5]  # enlarged to twice the size
    assert boxes[:200, 2:].amax(0).tolist() == [40, 20]  # reduced to half
    assert boxes[200:, 2].max() == 30  # as far as the image reaches
    assert (boxes[:, 2] - 2 * boxes[:, 3]).abs().max() <= 1  # not distorted


def test_a_crop_of_an_image_shows_what_its_mask_says():
    module = built(size=16)
    module.generator = torch.Generator().manual_seed(0)
    masks = torch.arange(2)[None, :, None].expand(8, 2, 2).repeat_interleave(12, 1).repeat_interleave(12, 2)
    masks = torch.cat([masks[:4], masks[:4].mT])  # halves: of some images upper and lower, of others left and right
    images, cut = module.crops((200 * masks[:, None]).to(torch.uint8).expand(-1, 3, -1, -1), masks)
    assert images.shape == (8, 3, 16, 16)
    assert cut.shape == (8, 16, 16)
    agree = (images[:, 0] > 100 / 255) == cut.bool()
    assert agree.float().mean() > 0.97
    assert 0.2 < cut.float().mean() < 0.8


def test_without_a_size_crops_are_as_large_as_the_images_in_whole_patches():
    module = built(**VIT)
    images, masks = module.crops(*shapes(2, side=26)[:])
    assert images.shape == (2, 3, 24, 24)
    assert masks.shape == (2, 24, 24)


# --- networks -----------------------------------------------------------------------------------------------------


def test_whole_images_of_any_size_are_filled_up_with_the_mean_colour():
    module = built(**VIT, mean=[0.5] * 3, std=[0.25] * 3, size=16).eval()
    images = torch.rand(2, 3, 18, 21, generator=torch.Generator().manual_seed(0))
    logits = module.logits(images)
    assert logits.shape == (2, 3, 18, 21)
    filled = torch.full((2, 3, 20, 24), 0.5)
    filled[..., :18, :21] = images
    torch.testing.assert_close(logits, module.logits(filled)[..., :18, :21])


def test_stages_lie_one_on_top_of_the_other_in_the_size_of_the_largest():
    module = built(stages=[0, -1]).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, last = module.encoder.forward_intermediates(x)
    expected = torch.cat([first, F.interpolate(last, (8, 8), mode="bilinear")], 1)
    torch.testing.assert_close(module.read(x), expected)
    assert module.heads[0][1].weight.shape == (3, 24, 1, 1)


def test_the_checkpoint_of_a_method_is_fed_as_in_its_pretraining_but_whole(tmp_path):
    method = SimCLR(**TINY, size=16, mean=[0.4] * 3, std=[0.2] * 3, output_dim=8)
    trainer(tmp_path, max_epochs=0).fit(method, loader())
    t = trainer(tmp_path)
    t.strategy.connect(method)
    t.save_checkpoint(tmp_path / "pretrained.ckpt")
    module = SemanticSegmentation(str(tmp_path / "pretrained.ckpt"), num_classes=3)
    images = shapes(2)[:][0]
    torch.testing.assert_close(module.preprocess(images), (images / 255 - 0.4) / 0.2)
    assert module.size == 16
    assert same_bits(module.encoder.state_dict(), method.encoder.state_dict())


# --- runs ---------------------------------------------------------------------------------------------------------


def test_mean_iou_rises_on_shapes_and_the_frozen_encoder_stays_to_the_bit(tmp_path):
    module = built(learning_rate=0.1, size=24, stages=[0, 1], mean=[0.25] * 3, std=[0.1] * 3)
    before = snapshot(module.encoder)
    t = trainer(tmp_path, max_epochs=8)
    first = t.validate(module, loader(seed=1), verbose=False)[0]
    t.fit(module, DataLoader(shapes(32), 4))
    last = t.validate(module, loader(seed=1), verbose=False)[0]
    assert last["val/mean_iou"] > first["val/mean_iou"] + 0.2
    assert last["val/mean_iou"] > 0.6
    assert last["val/pixel_accuracy"] > 0.85
    assert same_bits(before, module.encoder.state_dict())
    assert not any(part.training for part in module.train().encoder.modules())
    assert all(part.training for part in module.heads[0].modules())


def test_fine_tuning_moves_the_encoder_at_rates_that_fall_with_depth(tmp_path):
    module = built(train_encoder=True, layer_decay=0.5, size=24, learning_rate=1e-3, lr_scheduler=constant)
    before = snapshot(module.encoder)
    t = trainer(tmp_path, max_steps=2)
    t.fit(module, loader())
    assert all(not torch.equal(before[name], p) for name, p in module.encoder.named_parameters())
    assert all(part.training for part in module.train().encoder.modules())
    rates = {id(p): group["lr"] for group in t.optimizers[0].param_groups for p in group["params"]}
    first, second = (rates[id(stage[0].weight)] for stage in module.encoder.stages)
    assert rates[id(module.heads[0][1].weight)] == pytest.approx(1e-3)
    assert second / first == pytest.approx(2)


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def test_a_class_that_does_not_occur_takes_no_part_in_the_mean(tmp_path):
    module = built(num_classes=2).eval()
    module.scores = lambda x: torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)
    images = torch.zeros(2, 3, 4, 4)
    images[:, :, :, :2] = 1
    masks = torch.zeros(2, 4, 4, dtype=torch.long)
    bright = masks.clone()
    bright[:, :, :1] = 1
    t = trainer(tmp_path)
    found = t.validate(module, DataLoader(TensorDataset(images, bright), 2), verbose=False)[0]
    assert found["val/iou/0"] == pytest.approx(2 / 3)
    assert found["val/iou/1"] == pytest.approx(1 / 2)
    assert found["val/mean_iou"] == pytest.approx(7 / 12)
    assert found["val/pixel_accuracy"] == pytest.approx(3 / 4)
    dark = t.validate(module, DataLoader(TensorDataset(0 * images, masks), 2), verbose=False)[0]
    assert dark["val/mean_iou"] == 1
    assert "val/iou/1" not in dark


def test_the_pictures_of_a_run_have_the_truth_beside_the_prediction(tmp_path):
    seen = []

    class Note(Pictures):
        def _write(self, trainer, log_dir, name, tiles):
            seen.append((name, tuple(tiles.images.shape)))

    trainer(tmp_path, max_steps=1, callbacks=[Note(images=2)]).fit(built(), loader())
    assert seen == 2 * [("segmentation", (2, 3, 3, 24, 24))]  # at the start and at the end


def test_a_run_that_stopped_in_the_middle_of_an_epoch_goes_on_as_if_it_had_not(tmp_path):
    for number, (image, mask) in enumerate(shapes(6)):
        write_png(image, tmp_path / "train" / f"{number}.png")
        write_png(mask[None].to(torch.uint8), tmp_path / "mask" / f"{number}.png")

    def run(folder, ckpt=None):
        module = built(size=16, train_encoder=True)
        data = MaskFolder(f"{tmp_path}/train", f"{tmp_path}/mask", 3, val=None, batch_size=2, num_workers=0)
        every = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        t = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[every])
        torch.manual_seed(5)
        t.fit(module, datamodule=data, ckpt_path=ckpt)
        return snapshot(module)

    assert same_bits(run("whole"), run("resumed", tmp_path / "whole" / "step=2.ckpt"))


def write_png(image, file):
    file.parent.mkdir(exist_ok=True)
    torchvision.io.write_png(image, str(file))


def test_a_checkpoint_needs_no_argument_and_no_other_file(tmp_path):
    module = built(size=16, stages=[-1])
    t = trainer(tmp_path, max_steps=1)
    t.fit(module, loader())
    t.save_checkpoint(tmp_path / "run.ckpt")
    again = load(tmp_path / "run.ckpt")
    images = shapes(2)[:][0]
    assert isinstance(again, SemanticSegmentation)
    assert torch.equal(again.eval().logits(images), module.eval().logits(images))


def test_pictures_show_image_truth_and_prediction():
    images, masks = shapes(3)[:]
    module = built().eval()
    drawn = module.pictures(images, masks)["segmentation"].images
    assert drawn.shape == (3, 3, 3, 24, 24)
    torch.testing.assert_close(drawn[:, 0], images / 255)
    torch.testing.assert_close(drawn[:, 1, :, 0], drawn[:, 0, :, 0])  # what does not count is not painted
    assert not torch.allclose(drawn[:, 1, :, 1:], drawn[:, 0, :, 1:], atol=0.05)
    assert module.pictures(images)["segmentation"].images.shape[1] == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda images, masks: (images, masks + 7), "a mask holds the number 9, expected 0 to 2, or 255"),
        (
            lambda images, masks: (images, masks[:, 1:]),
            r"the masks are torch.int64 .*, expected torch.int64 \(2, 24, 24",
        ),
        (lambda images, masks: (images, masks.float()), "the masks are torch.float32"),
        (lambda images, masks: images, r"the batch is a Tensor, expected \(images, masks\)"),
        (lambda images, masks: (images[:, :1], masks), "the images have 1 channels"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_sentence(change, sentence):
    images, masks = shapes(2)[:]
    with pytest.raises(ValueError, match=sentence):
        built().check_batch(change(images, masks.clamp_max(2)))
