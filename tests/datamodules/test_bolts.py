"""DataModules of another generation of Lightning."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sslmodules.datamodules import from_bolts


class OldDataModule:
    """What a DataModule of Lightning 1.x offers: no `on_exception`, stages fit and test only."""

    num_classes = 10
    dims = (3, 8, 8)

    def __init__(self):
        self.calls = []

    def prepare_data(self, *args, **kwargs):
        self.calls.append("prepare_data")

    def setup(self, stage=None):
        self.calls.append(f"setup {stage}")
        images = TensorDataset(torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))
        if stage == "fit":
            self.images = images
        if stage == "test":
            self.test_images = images

    def teardown(self, stage=None):
        self.calls.append(f"teardown {stage}")

    def train_dataloader(self):
        return DataLoader(self.images, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.images, batch_size=4)

    def test_dataloader(self):
        return DataLoader(self.test_images, batch_size=4)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.count = {"train": 0, "val": 0, "test": 0, "predict": 0}

    def step(self, name, batch):
        self.count[name] += 1
        return self.layer(batch[0].float().flatten()[:1]).sum()

    def training_step(self, batch):
        return self.step("train", batch)

    def validation_step(self, batch):
        self.step("val", batch)

    def test_step(self, batch):
        self.step("test", batch)

    def predict_step(self, batch):
        return self.step("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer():
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_train_batches=2,
        limit_val_batches=2,
        limit_test_batches=2,
        limit_predict_batches=2,
    )


def run_everything(data):
    module = Module()
    trainer().fit(module, datamodule=data)
    trainer().validate(module, datamodule=data)
    trainer().test(module, datamodule=data)
    trainer().predict(module, datamodule=data)
    return module.count


def test_an_old_datamodule_fails_by_itself_and_runs_when_wrapped():
    with pytest.raises(AttributeError, match="on_exception"):
        trainer().fit(Module(), datamodule=OldDataModule())
    old = OldDataModule()
    assert run_everything(from_bolts(old)) == {"train": 2, "val": 4, "test": 2, "predict": 2}
    assert old.calls[:3] == ["prepare_data", "setup fit", "teardown fit"]
    assert "setup test" in old.calls
    assert "on_exception" not in vars(OldDataModule)


def test_attributes_are_those_of_the_wrapped_module():
    data = from_bolts(OldDataModule())
    assert data.num_classes == 10
    assert data.dims == (3, 8, 8)
    with pytest.raises(AttributeError, match="nonsense"):
        data.nonsense


def test_what_is_no_datamodule_is_refused():
    with pytest.raises(TypeError, match="expected a DataModule, got list"):
        from_bolts([1, 2])


def test_a_datamodule_of_lightning_bolts_runs_when_wrapped(tmp_path):
    try:
        from pl_bolts.datamodules.vision_datamodule import VisionDataModule
    except Exception as error:  # old packages fail in many ways on new ones
        pytest.skip(f"lightning-bolts cannot be imported: {error}")
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor

    class Fake(FakeData):
        def __init__(self, root, train=True, transform=None, download=False):
            super().__init__(size=16, image_size=(3, 8, 8), transform=transform)

    class FakeDataModule(VisionDataModule):
        name = "fake"
        dataset_cls = Fake
        dims = (3, 8, 8)
        num_classes = 10

        def default_transforms(self):
            return ToTensor()

    def make():
        return FakeDataModule(str(tmp_path), val_split=0.5, batch_size=4, pin_memory=False)

    assert not isinstance(make(), pl.LightningDataModule)
    with pytest.raises(AttributeError, match="on_exception"):
        trainer().fit(Module(), datamodule=make())
    data = from_bolts(make())
    assert run_everything(data) == {"train": 2, "val": 4, "test": 2, "predict": 2}
    assert data.num_classes == 10
