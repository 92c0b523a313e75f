from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from runs import loader, trainer
from torch import nn
from torch.utils.data import DataLoader

from sslmodules import LinearProbe, SimCLR
from sslmodules.callbacks import FiniteLoss, NotFiniteError
from sslmodules.datamodules import ImageFolder


class Diverges(SimCLR):
    """SimCLR whose loss is spoiled in one batch of the run."""

    def __init__(self, at: int = -1, value: float = torch.nan, **kwargs) -> None:
        super().__init__("conv4", encoder_args={"widths": (8, 16)}, warmup_epochs=0, **kwargs)
        self.at = at
        self.value = value
        self.batches = 0

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == self.at:
            out["loss"] = out["loss"] * self.value
            out["pair_accuracy"] = out["pair_accuracy"] * self.value
        self.batches += 1
        return out


def every_step(folder, **kwargs) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False, **kwargs)


def finite(file: Path) -> bool:
    state = torch.load(file, weights_only=True)["state_dict"]
    return all(x.isfinite().all() for x in state.values())


def run_into(module, folder, data=None, checkpoint=True, **kwargs) -> NotFiniteError:
    """What a run raises that saves after every step."""
    callbacks = [every_step(folder), *kwargs.pop("callbacks", [])] if checkpoint else kwargs.pop("callbacks", [])
    run = trainer(folder, max_epochs=3, callbacks=callbacks, enable_checkpointing=checkpoint, **kwargs)
    with pytest.raises(NotFiniteError) as raised:
        run.fit(module, *([loader()] if data is None else data))
    return raised.value


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step_and_the_checkpoint_is_from_before(
    value, precision, tmp_path
):
    module = Diverges(at=6, value=value)
    error = run_into(module, tmp_path, precision=precision)
    assert module.batches == 7
    assert str(error) == (
        f"the loss is {value} at batch 2 of epoch 1 (optimizer step 7), as is its term pair_accuracy; the loader does "
        f"not know its files. The last good checkpoint is {tmp_path / 'last.ckpt'}; go on from there with a lower "
        "learning rate, or pass FiniteLoss(stop=False) (--finite.stop false) to ignore it"
    )
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    assert finite(tmp_path / "last.ckpt")


def test_under_accumulation_the_batch_is_named_and_no_file_holds_its_step(tmp_path):
    error = run_into(Diverges(at=4), tmp_path, accumulate_grad_batches=2)  # the first of two batches
    assert "at batch 0 of epoch 1 (optimizer step 2)" in str(error)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert finite(tmp_path / "last.ckpt")


def test_weights_that_one_step_ruins_are_not_saved(tmp_path):
    module = Diverges(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))

    def ruin(*_) -> None:
        if module.trainer.global_step == 2:  # in the third step, whose loss is finite
            for p in module.encoder.parameters():
                p.grad.fill_(torch.inf)

    module.on_before_optimizer_step = ruin
    error = run_into(module, tmp_path)
    assert "the weights are not finite after optimizer step 3 in epoch 0 (encoder." in str(error)
    assert f"The last good checkpoint is {tmp_path / 'last.ckpt'}" in str(error)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_foreign_or_own_module_saves_no_weights_that_are_not_finite(weights_only, tmp_path):
    module = Diverges(at=2)
    checkpoint = every_step(tmp_path, save_weights_only=weights_only)
    run = trainer(tmp_path, max_epochs=1, callbacks=[checkpoint], enable_checkpointing=True)
    with pytest.raises(NotFiniteError):
        run.fit(module, loader())
    with pytest.raises(NotFiniteError):
        run.save_checkpoint(tmp_path / "by hand.ckpt", weights_only)
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    assert finite(tmp_path / "last.ckpt")


def test_it_guards_any_lightning_module(tmp_path):
    class Foreign(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(torch.ones(1, 1)).sum() * (torch.nan if batch_idx == 2 else 1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    error = run_into(Foreign(), tmp_path, [DataLoader(torch.zeros(5))], checkpoint=False, callbacks=[FiniteLoss()])
    assert str(error).startswith("the loss is nan at batch 2 of epoch 0 (optimizer step 3); the loader does not know")
    assert "No checkpoint was written; start again with a lower" in str(error)


def test_told_not_to_stop_it_warns_once_and_goes_on(tmp_path):
    module = Diverges(at=1)
    run = trainer(
        tmp_path, max_epochs=1, callbacks=[FiniteLoss(stop=False), every_step(tmp_path)], enable_checkpointing=True
    )
    with pytest.warns(UserWarning, match="the loss is nan at batch 1 of epoch 0") as warned:
        run.fit(module, loader())
    assert module.batches == 4
    assert sum("the loss is nan" in str(w.message) for w in warned) == 1
    assert not finite(tmp_path / "last.ckpt")


def test_files_of_the_batch_are_named(tmp_path):
    for number in range(12):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    read = []

    class Notes(Diverges):
        def training_step(self, batch, batch_idx):
            read.append([int(x) for x in batch[:, 0, 0, 0]])  # the files' numbers stand in their red
            return super().training_step(batch, batch_idx)

    folder = ImageFolder(str(tmp_path), val_fraction=0.1, batch_size=4, num_workers=0)
    error = run_into(Notes(at=3), tmp_path / "run", [folder], accumulate_grad_batches=2)
    assert error.files == tuple(str(tmp_path / f"{number}.png") for number in read[3])
    assert f"its files are {', '.join(error.files[:3])} and 1 more" in str(error)


def test_no_method_waits_for_the_device_in_a_step(tmp_path, monkeypatch):
    # As on a GPU: losses are read with the logs and before a checkpoint, and the batch is named all the same.
    monkeypatch.setattr(FiniteLoss, "reads_at_once", lambda *_: False)
    module = Diverges(at=1)
    error = run_into(module, tmp_path, checkpoint=False, log_every_n_steps=3)
    assert module.batches == 3
    assert "at batch 1 of epoch 0 (optimizer step 2)" in str(error)
    module = Diverges(at=5)
    error = run_into(module, tmp_path, checkpoint=False, log_every_n_steps=100)
    assert module.batches == 8  # at the end of the epoch
    assert "at batch 1 of epoch 1 (optimizer step 6)" in str(error)


def test_one_classifier_of_several_may_diverge(tmp_path):
    small = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "num_classes": 4}
    module = LinearProbe(**small, learning_rates=[0.1, 0.2])
    module.heads[1].weight.data.fill_(torch.nan)
    run = trainer(tmp_path, max_epochs=1, callbacks=[every_step(tmp_path)], enable_checkpointing=True)
    run.fit(module, loader(32), loader(8))
    assert run.global_step == 4
    assert (tmp_path / "last.ckpt").exists()
    module.heads[0].weight.data.fill_(torch.nan)
    assert "the loss is nan at batch 0" in str(run_into(module, tmp_path, [loader(), loader(8)]))
