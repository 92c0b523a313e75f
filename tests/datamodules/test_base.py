"""DataModules around datasets of any kind."""

import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from runs import trainer
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from sslmodules import SimCLR
from sslmodules.datamodules import (
    Digits,
    ImageDataModule,
    ImageSet,
    LabeledDataModule,
    TensorImages,
    UnlabeledDataModule,
)

ARRAY = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)  # (H, W, C)
EXPECTED = torch.from_numpy(ARRAY).permute(2, 0, 1)


@pytest.mark.parametrize(
    "item",
    [
        Image.fromarray(ARRAY),
        ARRAY,
        EXPECTED,
        (Image.fromarray(ARRAY), 3),
        [ARRAY, np.int64(3)],
        {"image": EXPECTED, "label": torch.tensor(3), "caption": "more"},
        {"image": Image.fromarray(ARRAY)},
    ],
    ids=["PIL", "array", "tensor", "pair of PIL", "pair of array", "mapping", "mapping without label"],
)
def test_foreign_items_become_uint8_images(item):
    batch = next(iter(UnlabeledDataModule([item] * 4, batch_size=2, num_workers=0).train_dataloader()))
    assert batch.dtype == torch.uint8
    assert torch.equal(batch, torch.stack([EXPECTED] * 2))
    labeled = isinstance(item, tuple | list) or (isinstance(item, dict) and "label" in item)
    if labeled:
        images, labels = next(iter(LabeledDataModule([item] * 4, batch_size=2, num_workers=0).train_dataloader()))
        assert torch.equal(images, batch)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [3, 3]


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_pictures_of_any_mode_become_grey_or_rgb(mode, channels):
    items = [Image.new(mode, (5, 4))] * 2
    assert next(iter(UnlabeledDataModule(items, batch_size=2).train_dataloader())).shape == (2, channels, 4, 5)


def test_floats_pass_untouched():
    images = torch.randn(4, 3, 5, 5)
    batch = ImageSet(images).__getitems__([2, 0])
    assert torch.equal(batch, images[[2, 0]])


def test_a_tensor_dataset_of_torch_works():
    data = LabeledDataModule(TensorDataset(EXPECTED.repeat(4, 1, 1, 1), torch.arange(4)), batch_size=4, num_workers=0)
    assert next(iter(data.train_dataloader()))[1].sort().values.tolist() == [0, 1, 2, 3]


def test_images_of_unequal_shape_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2, 2\) and \(1, 3, 2\)"):
        ImageSet([torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)]).__getitems__([0, 1])


@pytest.mark.parametrize("item", ["a.png", torch.zeros(5), np.zeros(3), {"picture": 1}])
def test_what_is_no_image_is_refused(item):
    with pytest.raises(TypeError, match="image"):
        ImageSet([item]).__getitems__([0])


def test_tensor_images_work_in_an_ordinary_loader_too():
    images = TensorImages(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4))
    assert next(iter(DataLoader(images, batch_size=4)))[1].tolist() == [0, 1, 2, 3]


def test_tensor_images_copy_nothing():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8).expand(-1, 3, -1, -1)
    assert TensorImages(images).images.data_ptr() == images.data_ptr()
    with pytest.raises(ValueError, match="uint8 images"):
        TensorImages(torch.zeros(4, 3, 2, 2))
    with pytest.raises(ValueError, match="one label each"):
        TensorImages(images, torch.zeros(3))


def items(size, classes=2):
    return [(torch.full((1, 2, 2), i, dtype=torch.uint8), i % classes) for i in range(size)]


def test_paired_batches_are_mappings_with_labels_that_fit():
    labeled = TensorImages(torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4), torch.arange(3))
    data = UnlabeledDataModule(items(8), labeled=labeled, val=labeled, batch_size=4, num_workers=0)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert set(batch) == {"image", "labeled_image", "labeled_label"}
        assert batch["labeled_image"][:, 0, 0, 0].tolist() == batch["labeled_label"].tolist()
        assert batch["labeled_label"].tolist() == [i % 3 for i in batch["image"][:, 0, 0, 0].tolist()]
    assert data.num_classes == 3
    assert next(iter(data.val_dataloader()))[1].tolist() == [0, 1, 2]


def test_labeled_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="labeled= have no labels"):
        UnlabeledDataModule(items(8), labeled=[EXPECTED] * 2).setup("fit")
    with pytest.raises(ValueError, match="train= have no labels"):
        LabeledDataModule([EXPECTED] * 4).setup("fit")


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 5), (0.01, 1)])
def test_the_others_keep_their_place_with_label_minus_one_or_leave(fraction, expected):
    kept = LabeledDataModule(items(20), batch_size=20, label_fraction=fraction, num_workers=0)
    images, labels = next(iter(kept.train_dataloader()))
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(20))
    assert [(labels == label).sum().item() for label in (-1, 0, 1)] == [20 - 2 * expected, expected, expected]
    known = labels >= 0
    assert torch.equal(images[known][:, 0, 0, 0] % 2, labels[known])
    dropped = LabeledDataModule(
        items(20), batch_size=20, label_fraction=fraction, unlabeled="drop", drop_last=False, num_workers=0
    )
    few, labels = next(iter(dropped.train_dataloader()))
    assert sorted(few[:, 0, 0, 0].tolist()) == sorted(images[known][:, 0, 0, 0].tolist())
    assert labels.bincount().tolist() == [expected, expected]


def test_val_test_and_predict_keep_the_order_and_predict_takes_the_last_split():
    def order(loader):
        return [i for images, _ in loader for i in images[:, 0, 0, 0].tolist()]

    data = LabeledDataModule(items(6), val=items(5), test=items(3), batch_size=2, num_workers=0)
    for name, size in (("val", 5), ("test", 3), ("predict", 3)):
        assert order(getattr(data, f"{name}_dataloader")()) == list(range(size))
    assert order(LabeledDataModule(items(6), val=items(5), batch_size=2).predict_dataloader()) == list(range(5))
    assert order(LabeledDataModule(items(6), batch_size=2).predict_dataloader()) == list(range(6))


def sizes(count, **options):
    data = UnlabeledDataModule(TensorImages(torch.zeros(count, 1, 2, 2, dtype=torch.uint8)), **options)
    return [len(batch) for batch in data.train_dataloader()]


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (10, None, [10]),
        (256, None, [256]),
        (511, None, [256, 255]),  # half of the images would be lost
        (300, 256, [256]),  # 15 %
        (26, 8, [8, 8, 8]),
        (11, 8, [8, 3]),
        (10, 8, [8]),
        (4, 3, [3]),  # batch norm has nothing to do with a single image
        (1, None, [1]),
    ],
)
def test_an_odd_last_batch_stays_where_many_images_would_go_with_it(count, batch_size, expected):
    assert sizes(count, batch_size=batch_size) == expected


def test_drop_last_that_was_asked_for_is_as_it_was_asked_for():
    assert sizes(511, batch_size=256, drop_last=True) == [256]
    assert sizes(26, batch_size=8, drop_last=False) == [8, 8, 8, 2]
    assert sizes(10, drop_last=True) == [10]
    with pytest.raises(ValueError, match=r"10 training images .* batch_size=256.*drop_last=False"):
        sizes(10, batch_size=256, drop_last=True)


def test_a_default_batch_is_cut_to_the_data_with_a_line_and_one_that_was_asked_for_is_warned_of(caplog):
    data = UnlabeledDataModule(items(10), num_workers=0)
    with caplog.at_level("INFO", "lightning.pytorch"):
        assert data.train_dataloader().batch_size == 10  # learning rates are scaled by it
        data.train_dataloader()
    assert [r.message for r in caplog.records if "training batch" in r.message] == [
        "a training batch holds all 10 images, fewer than the default of 256"
    ]
    with pytest.warns(UserWarning, match=r"fewer than batch_size=256.*pass batch_size=10"):
        loader = UnlabeledDataModule(items(10), batch_size=256, num_workers=0).train_dataloader()
    assert loader.batch_size == 256
    assert [len(batch) for batch in loader] == [10]


def test_an_empty_dataset_is_refused_in_setup():
    with pytest.raises(ValueError, match="holds no image"):
        UnlabeledDataModule([]).setup("fit")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}, {"seed": -1}])
def test_wrong_numbers_are_refused_at_once(wrong):
    with pytest.raises(ValueError, match="batch_size is at least 1"):
        UnlabeledDataModule(items(3), **wrong)


def test_setup_twice_loads_once():
    class Counting(ImageDataModule):
        loads = 0

        def load(self, split):
            self.loads += 1
            return ImageSet(items(4))

    data = Counting()
    data.setup("fit")
    loads = data.loads
    data.setup("fit")
    assert data.loads == loads == 3


def test_classes_are_found_behind_a_subset_and_labels_are_read_where_nobody_lists_them():
    class Named:
        classes = ("cat", "dog")
        targets = [0, 1, 1]

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.full((1, 2, 2), index, dtype=torch.uint8), self.targets[index]

    data = LabeledDataModule(Subset(Named(), [0, 2]), batch_size=2)
    assert data.classes == ["cat", "dog"]
    assert data.num_classes == 2
    assert LabeledDataModule(ConcatDataset([items(4, classes=3)])).num_classes == 3
    assert UnlabeledDataModule(items(4)).num_classes is None


def test_workers_serve_only_data_that_is_not_in_memory():
    memory = TensorImages(torch.zeros(4, 3, 2, 2, dtype=torch.uint8))
    assert UnlabeledDataModule(memory, batch_size=2).train_dataloader().num_workers == 0
    assert UnlabeledDataModule(items(4), batch_size=2).train_dataloader().num_workers <= 8
    loader = UnlabeledDataModule(items(4), batch_size=2, num_workers=1).train_dataloader()
    assert loader.num_workers == 1
    assert loader.persistent_workers


@pytest.mark.parametrize(
    "data",
    [
        Digits(),
        UnlabeledDataModule(items(4), labeled=items(2)),
        LabeledDataModule(
            TensorImages(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4)), label_fraction=0.5
        ),
    ],
    ids=["digits", "unlabeled", "labeled"],
)
def test_datamodules_and_datasets_travel_to_spawned_processes(data):
    data.setup("fit")
    copy = pickle.loads(pickle.dumps(data))
    left, right = (module.split("train").__getitems__([1, 0]) for module in (data, copy))
    assert torch.equal(left[0], right[0])


def test_hyperparameters_are_plain_and_stay_out_of_the_loggers(tmp_path):
    class Module(pl.LightningModule):
        def __init__(self, batch_size=3):  # the same name with another value: Lightning refuses to log both
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, _):
            return self.layer(batch[0][:, 0, 0, :1].float()).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, default_root_dir=tmp_path, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(Module(), datamodule=Digits(batch_size=64, size=12))
    checkpoint = trainer.checkpoint_callback.best_model_path
    saved = torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    assert saved["size"] == 12
    assert Digits.load_from_checkpoint(checkpoint).size == 12


def test_predictions_come_in_the_order_of_the_images():
    class Module(pl.LightningModule):
        def predict_step(self, batch):
            return batch[0][:, 0, 0, 0]

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    data = LabeledDataModule(items(7), batch_size=3, num_workers=0)
    assert torch.cat(trainer.predict(Module(), datamodule=data)).tolist() == list(range(7))


def from_yaml(name, **arguments):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    config = {"data": {"class_path": f"sslmodules.datamodules.{name}", "init_args": arguments}}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(parser.parse_object(config)).data


def test_a_yaml_makes_datamodules(tmp_path):
    assert from_yaml("Digits", mode="L", label_fraction=0.1).mode == "L"
    assert from_yaml("ImageFolder", root=str(tmp_path), extensions=[".png"], size=32).size == 32
    assert [from_yaml(name).num_classes for name in ("CIFAR10", "FashionMNIST", "STL10")] == [10] * 3
    fake = {"class_path": "torchvision.datasets.FakeData", "init_args": {"size": 8, "image_size": [3, 4, 4]}}
    data = from_yaml("UnlabeledDataModule", dataset=fake, batch_size=4, num_workers=0)
    assert next(iter(data.train_dataloader())).shape == (4, 3, 4, 4)


class Stream(IterableDataset):
    """Images without number."""

    def __iter__(self):
        while True:
            yield torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)


def test_a_dataset_that_can_only_be_iterated_over_is_refused_and_trains_as_the_sentence_says(tmp_path):
    for wrong in (Stream(), iter([1])):
        with pytest.raises(ValueError, match=rf"dataset is a {type(wrong).__name__}, which can only be iterated over"):
            UnlabeledDataModule(wrong)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="val is a Stream, which can only be iterated over"):
        UnlabeledDataModule(images, val=Stream())
    with pytest.raises(ValueError, match="train is a Stream, which can only be iterated over"):
        LabeledDataModule(Stream())
    run = trainer(tmp_path, max_steps=3)
    run.fit(SimCLR("conv4", encoder_args={"widths": (4, 8)}), DataLoader(Stream(), batch_size=4))
    assert run.global_step == 3
