import pytest
import torch

from sslmodules.datamodules import Digits


def test_1500_train_and_297_held_out_without_overlap_and_balanced():
    data = Digits(seed=3)
    data.setup("fit")
    train, val = data.split("train"), data.split("val")
    assert (len(train), len(val)) == (1500, 297)
    assert sorted(train.indices.tolist() + val.indices.tolist()) == list(range(1797))
    counts = val.__getitems__(range(297))[1].bincount()
    assert counts.min() >= 29
    assert counts.max() <= 30
    assert torch.equal(Digits(seed=3).split("test").indices, val.indices)
    assert not torch.equal(Digits(seed=4).split("val").indices, val.indices)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize("size", [None, 32])
def test_images_are_uint8_over_the_whole_range(mode, channels, size):
    data = Digits(mode=mode, size=size)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        images, labels = next(iter(loader))
        assert images.dtype == torch.uint8
        assert images.shape == (256, channels, size or 8, size or 8)
        assert images.min() == 0
        assert images.max() > 250
        assert labels.dtype == torch.int64


def test_the_smallest_share_of_labels_is_one_of_each_class():
    data = Digits(label_fraction=0.001, unlabeled="drop", drop_last=False)
    (_images, labels), *more = list(data.train_dataloader())
    assert sorted(labels.tolist()) == list(range(10))
    assert more == []
