import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from runs import images, loader, trainer
from torch.utils.data import DataLoader

from sslmodules import SimCLR
from sslmodules.callbacks import Collapse, EmbeddingWriter, OnlineKNN, Pictures
from sslmodules.metrics import knn_scores


def method(cls=SimCLR, **kwargs):
    torch.manual_seed(0)
    return cls("conv4", encoder_args={"widths": (8, 16)}, **kwargs)


def test_knn_bank_is_the_latest_labeled_images_in_a_ring(tmp_path):
    knn, seen = OnlineKNN(4, bank_size=20), []

    class Watch(SimCLR):
        def training_step(self, batch, batch_idx):
            out = super().training_step(batch, batch_idx)
            seen.append((out["features"], out["labels"]))
            return out

    trainer(tmp_path, max_epochs=1, callbacks=[knn]).fit(method(Watch, warmup_epochs=0), loader(32))
    features, labels = (torch.cat(part)[-20:] for part in zip(*seen, strict=True))
    start = knn._position
    torch.testing.assert_close(knn._bank.roll(-start, 0), features)
    assert torch.equal(knn._labels.roll(-start, 0), labels)


def test_knn_accuracy_is_that_of_the_bank_on_held_out_images(tmp_path):
    knn, module = OnlineKNN(4, k=3), method(warmup_epochs=0)
    run = trainer(tmp_path, max_epochs=1, callbacks=[knn])
    held_out = images(13, seed=1)
    run.fit(module, loader(32), DataLoader(held_out, 5))
    x, y = held_out[:]
    votes = knn_scores(module.eval()(x), knn._bank, knn._labels, 4, k=3, temperature=0.07)
    assert run.callback_metrics["probe/knn/val_accuracy"].item() == pytest.approx(
        (votes.argmax(1) == y).float().mean().item()
    )


def test_collapse_is_measured_and_said_aloud(tmp_path):
    class Constant(SimCLR):
        def encode(self, x):
            return super().encode(x) * 0 + 1

    run = trainer(tmp_path, max_epochs=1, callbacks=[Collapse()])
    with pytest.warns(UserWarning, match="the features have collapsed: their spread is"):
        run.fit(method(Constant, warmup_epochs=0), loader(16), loader(16))
    assert run.callback_metrics["monitor/spread"] < 1e-5
    assert run.callback_metrics["monitor/rank_me"] == pytest.approx(1, abs=1e-2)
    run = trainer(tmp_path, max_epochs=1, callbacks=[Collapse()])
    run.fit(method(warmup_epochs=0), loader(16), loader(16))
    assert run.callback_metrics["monitor/rank_me"] > 2


def test_callbacks_leave_a_module_without_pictures_or_features_alone(tmp_path):
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(768, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0].flatten(1) / 255.0).mean()

        def validation_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    run = trainer(tmp_path, max_steps=1, callbacks=[Pictures(), Collapse()])
    run.fit(Plain(), loader(8), loader(8))
    assert not [k for k in run.callback_metrics if k.startswith("monitor")]


def test_embeddings_are_those_of_the_images_in_order(tmp_path):
    module = method()
    run = trainer(tmp_path, callbacks=[EmbeddingWriter(tmp_path / "sub" / "e.npz")])
    run.predict(module, loader(20))
    with np.load(tmp_path / "sub" / "e.npz") as saved:
        x, y = images(20)[:]
        np.testing.assert_allclose(saved["features"], module.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-6)
        assert saved["labels"].tolist() == y.tolist()
    run.predict(module, DataLoader(images(20)[:][0], 8))
    with np.load(tmp_path / "sub" / "e.npz") as saved:
        assert "labels" not in saved
