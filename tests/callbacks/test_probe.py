import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from runs import images, loader, same_bits, snapshot, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sslmodules import SimCLR
from sslmodules.callbacks import OnlineKNN, OnlineLinearProbe
from sslmodules.callbacks.features import frozen
from sslmodules.datamodules import UnlabeledDataModule


class Foreign(LightningModule):
    """An ordinary project's module: tuple batches, dropout, batch norm, a bare loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.out = nn.Linear(8, 4)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.net(x / 255.0)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.out(self.net(x / 255.0)), y)

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.001)


def test_attaches_to_a_foreign_module_and_leaves_it_as_it_was(tmp_path):
    results = []
    for callbacks in ([], [OnlineLinearProbe(4, learning_rate=0.05), OnlineKNN(4, k=1)]):
        torch.manual_seed(0)
        module = Foreign()
        module.net[2].eval()  # a frozen norm must stay frozen
        run = trainer(tmp_path, max_epochs=20, callbacks=callbacks)
        run.fit(module, loader(32), loader(32))
        results.append(snapshot(module))
        assert [m.training for m in module.net] == [True, True, False, True]
    assert same_bits(*results)
    assert not any(module.modes)  # the probe's forwards ran in eval mode
    assert run.callback_metrics["probe/val_accuracy"] > 0.8
    assert run.callback_metrics["probe/knn/val_accuracy"] > 0.8


def test_probe_reads_the_representation_or_the_projection(tmp_path):
    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, output_dim=5, warmup_epochs=0)
    h, z = OnlineLinearProbe(4), OnlineLinearProbe(4, reads="projections", name="probe_z")
    run = trainer(tmp_path, max_epochs=1, callbacks=[h, z])
    run.fit(method, loader(16), loader(16))
    assert (h.head[1].in_features, z.head[1].in_features) == (16, 5)
    assert {"probe/val_accuracy", "probe_z/val_accuracy"} <= run.callback_metrics.keys()


def test_probe_and_knn_read_a_stage_of_the_encoder(tmp_path):
    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, output_dim=5, warmup_epochs=0)
    first, last = (OnlineLinearProbe(4, reads=s, name=f"probe_{s}") for s in (0, 1))
    nearest = OnlineKNN(4, reads=0, bank_size=16)
    run = trainer(tmp_path, max_epochs=1, callbacks=[first, last, nearest])
    run.fit(method, loader(16), loader(16))
    assert (first.head[1].in_features, last.head[1].in_features) == (8, 16)
    assert {"probe_0/val_accuracy", "probe_1/val_accuracy", "probe/knn/val_accuracy"} <= run.callback_metrics.keys()
    with torch.no_grad():
        expected = method.eval().features(images(16)[:][0][8:], [0])[0].mean((2, 3))
    torch.testing.assert_close(nearest._bank[8:], expected)  # of the last batch, after the last step


@pytest.mark.parametrize("reads", ["features", "projections"])
def test_labeled_images_that_ride_along_feed_the_probe(reads, tmp_path):
    x, y = images(12)[:]
    data = UnlabeledDataModule(
        images(24)[:][0], val=images(8), labeled=list(zip(x, y.tolist(), strict=True)), batch_size=8, num_workers=0
    )
    probe, knn = OnlineLinearProbe(4, reads=reads), OnlineKNN(4, reads=reads)
    run = trainer(tmp_path, max_epochs=2, callbacks=[probe, knn])
    run.fit(SimCLR("conv4", encoder_args={"widths": (8, 16)}, output_dim=5, warmup_epochs=0), datamodule=data)
    assert probe.head[1].weight.abs().sum() > 0
    assert (knn._labels >= 0).sum() == 48
    assert run.callback_metrics["probe/val_accuracy"] >= 0


def test_images_without_label_among_labeled_ones_do_not_train_the_probe(tmp_path):
    x, y = images(16)[:]
    y = torch.where(y == 3, -1, y)  # class 3 is never labeled
    probe = OnlineLinearProbe(4)
    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, warmup_epochs=0)
    trainer(tmp_path, max_epochs=3, callbacks=[probe]).fit(method, DataLoader(list(zip(x, y, strict=True)), 8))
    logits = probe.head.eval()(method.eval()(x))
    assert not (logits.argmax(1) == 3).any()
    unlabeled = OnlineLinearProbe(4)
    trainer(tmp_path, max_epochs=1, callbacks=[unlabeled]).fit(
        method, DataLoader(list(zip(x, y * 0 - 1, strict=True)), 8)
    )
    assert unlabeled.head[1].weight.abs().sum() == 0


def test_number_of_classes_comes_from_the_datamodule_or_is_asked_for(tmp_path):
    class Data(LightningDataModule):
        num_classes = 7

        def train_dataloader(self):
            return loader(8)

    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, warmup_epochs=0)
    probe = OnlineLinearProbe()
    trainer(tmp_path, max_epochs=1, callbacks=[probe]).fit(method, datamodule=Data())
    assert probe.head[1].out_features == 7
    with pytest.raises(ValueError, match="OnlineLinearProbe does not know the number of classes"):
        trainer(tmp_path, max_epochs=1, callbacks=[OnlineLinearProbe()]).fit(method, loader(8))


class Bare(Foreign):
    """One that does not read labels itself."""

    def training_step(self, batch, batch_idx):
        return self.net(batch[0] / 255.0).square().mean()


BAD_LABELS = {
    "too large": (torch.tensor([0, 4]), r"a label is 4, expected whole numbers from 0 to 3, or -1 for none; pass the"),
    "negative": (torch.tensor([0, -2]), r"a label is -2, expected whole numbers from 0 to 3, or -1 for none"),
    "floats": (torch.tensor([0.0, 1.5]), r"the labels are float32, expected whole numbers from 0 to 3"),
}


@pytest.mark.parametrize(("labels", "sentence"), BAD_LABELS.values(), ids=BAD_LABELS)
@pytest.mark.parametrize("callback", [OnlineLinearProbe, OnlineKNN])
@pytest.mark.parametrize("own", [True, False])
def test_a_label_that_is_no_class_is_refused_in_any_batch(labels, sentence, callback, own, tmp_path):
    good = (images(2)[:][0], torch.tensor([-1, 3]))
    batches = [good, good, (good[0], labels)]
    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, optimizer=torch.optim.SGD) if own else Bare()
    run = trainer(tmp_path, max_epochs=1, callbacks=[callback(4)])
    with pytest.raises(ValueError, match=f"{callback(4).name}: {sentence}"):
        run.fit(method, DataLoader(batches, batch_size=None))
    assert run.global_step == 2
    run = trainer(tmp_path, max_epochs=1, callbacks=[callback(4)])
    if own:
        with pytest.raises(ValueError, match=sentence):
            run.fit(method, DataLoader([good], batch_size=None), DataLoader(batches, batch_size=None))


def test_labels_that_nobody_reads_may_be_anything(tmp_path):
    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, optimizer=torch.optim.SGD)
    batches = [(images(2)[:][0], torch.tensor([-7.5, 1e9]))]
    trainer(tmp_path, max_epochs=1).fit(method, DataLoader(batches, batch_size=None))


def test_a_forward_that_gives_no_matrix_is_named(tmp_path):
    class Maps(Foreign):
        def forward(self, x):
            return x / 255.0

    with pytest.raises(ValueError, match=r"Maps.forward gave \(8, 3, 16, 16\) for 8 images; a probe needs features"):
        trainer(tmp_path, max_steps=1, callbacks=[OnlineLinearProbe(4)]).fit(Maps(), loader(8))


def test_accuracy_is_that_of_all_held_out_images_counted_once(tmp_path):
    method = SimCLR("conv4", encoder_args={"widths": (8, 16)}, warmup_epochs=0)
    probe = OnlineLinearProbe(4, learning_rate=0.05)
    run = trainer(tmp_path, max_epochs=4, callbacks=[probe])
    held_out = images(13, seed=1)  # batches of 5, 5 and 3
    run.fit(method, loader(32), DataLoader(held_out, 5))
    x, y = held_out[:]
    expected = (probe.head.eval()(method.eval()(x)).argmax(1) == y).float().mean()
    assert run.callback_metrics["probe/val_accuracy"].item() == pytest.approx(expected.item())


def test_frozen_restores_every_flag_and_takes_no_random_number():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    module[1].eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), frozen(module):
        assert not module.training
        torch.rand(3)
        raise RuntimeError("inside")
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    assert torch.equal(state, torch.get_rng_state())


def test_two_probes_need_two_names(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(tmp_path, callbacks=[OnlineLinearProbe(4), OnlineLinearProbe(4)])
