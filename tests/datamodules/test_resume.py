"""Stop a Trainer anywhere and resume it: the very batches of a run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from sslmodules.datamodules import LabeledDataModule, TensorImages, UnlabeledDataModule

SIZE = 22


def numbered(size=SIZE):
    """Images whose grey value is their number."""
    return torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
        self.seen.append(images[:, 0, 0, 0].tolist())
        if isinstance(batch, dict):
            self.seen[-1] += batch["labeled_label"].tolist()
        return self.weight * images.float().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(Callback):
    """A checkpoint after every batch, validation and epoch."""

    def __init__(self, folder):
        self.folder = folder
        self.saved = []  # path, batches seen until then

    def save(self, trainer, moment):
        path = f"{self.folder}/{len(self.saved)}-{moment}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append((path, len(trainer.lightning_module.seen)))

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")


def fit(data, callbacks=(), ckpt_path=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **({"max_epochs": 3} | options),
    )
    module = Recorder()
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen, trainer


def plain(workers=0, val=True, drop_last=True):
    images = TensorImages(numbered(), torch.zeros(SIZE, dtype=torch.long))
    return LabeledDataModule(
        images, val=images if val else None, batch_size=4, num_workers=workers, drop_last=drop_last
    )


def paired(workers=0):
    labeled = TensorImages(numbered(7), torch.arange(7))
    return UnlabeledDataModule(TensorImages(numbered()), labeled=labeled, batch_size=4, num_workers=workers)


CASES = {
    "epochs": ({}, {}),
    "no validation": ({"val": False}, {}),
    "odd last batch": ({"drop_last": False}, {}),
    "max_steps": ({}, {"max_steps": 12, "max_epochs": -1}),
    "validation inside the epoch": ({}, {"val_check_interval": 2}),
    "accumulation": ({}, {"accumulate_grad_batches": 2}),
    "limit_train_batches": ({}, {"limit_train_batches": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_resuming_from_any_moment_gives_the_batches_of_a_run_never_stopped(case, tmp_path):
    of_data, of_trainer = CASES[case]
    saver = SaveEverywhere(tmp_path)
    whole, _ = fit(plain(**of_data), [saver], **of_trainer)
    assert len(whole) > 8
    assert len(saver.saved) > len(whole)
    for path, seen in saver.saved:
        assert fit(plain(**of_data), ckpt_path=path, **of_trainer)[0] == whole[seen:], path


@pytest.mark.parametrize("make", [plain, paired])
def test_resuming_is_exact_with_workers(make, tmp_path):
    saver = SaveEverywhere(tmp_path)
    whole, _ = fit(make(workers=2), [saver])
    assert whole == fit(make(workers=0))[0]
    of_epoch = [4, 5] if make is paired else [2, 4, 5]  # the epoch's last batch, its validation, its end
    for path, seen in [saver.saved[place] for place in [1, *of_epoch, 6]]:
        assert fit(make(workers=2), ckpt_path=path)[0] == whole[seen:], path


def test_paired_batches_resume_exactly_and_pair_by_the_rule(tmp_path):
    saver = SaveEverywhere(tmp_path)
    whole, _ = fit(paired(), [saver])
    for number, batch in enumerate(whole):
        epoch = number // 5
        assert all(label == (image + epoch * SIZE) % 7 for image, label in zip(batch[:4], batch[4:], strict=True))
    for path, seen in saver.saved:
        assert fit(paired(), ckpt_path=path)[0] == whole[seen:], path


def test_resuming_from_model_checkpoint_in_the_middle_of_an_epoch(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    whole, _ = fit(plain(), [keep])
    assert fit(plain(), ckpt_path=tmp_path / "step=3.ckpt")[0] == whole[3:]
    assert fit(plain(), ckpt_path=tmp_path / "step=12.ckpt")[0] == whole[12:]


def test_a_checkpoint_saved_after_fit_continues_where_it_ended(tmp_path):
    whole, _ = fit(plain())
    seen, trainer = fit(plain(), max_steps=7, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert seen + fit(plain(), ckpt_path=tmp_path / "after.ckpt", max_steps=15, max_epochs=-1)[0] == whole


def test_a_second_fit_goes_on_with_the_next_epoch():
    whole, _ = fit(plain())
    module, data = Recorder(), plain()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, enable_model_summary=False, **options)
    trainer.fit(module, datamodule=data)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, datamodule=data)
    assert module.seen == whole


def test_reloading_the_loader_every_epoch_keeps_the_order():
    assert fit(plain(), reload_dataloaders_every_n_epochs=1)[0] == fit(plain())[0]


def test_overfit_batches_works():
    seen, _ = fit(plain(), overfit_batches=2)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3


def test_killed_without_warning_and_resumed_from_what_lies_on_disk(tmp_path):
    whole, _ = fit(plain(workers=2))
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_resume as t
        class Killed(t.Recorder):
            def training_step(self, batch, batch_idx):
                if self.global_step == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().training_step(batch, batch_idx)
        t.Recorder = Killed
        keep = t.ModelCheckpoint({str(tmp_path)!r}, filename="{{step}}", every_n_train_steps=2, save_top_k=-1)
        t.fit(t.plain(workers=2), [keep])
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
    assert fit(plain(workers=2), ckpt_path=tmp_path / "step=6.ckpt")[0] == whole[6:]


class WriteDown(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, module):
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))


def test_two_processes_under_ddp_share_the_images_and_resume_exactly(tmp_path):
    options = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 2}

    def run(folder, **more):
        folder.mkdir()
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit(plain(), [WriteDown(folder), keep], **options, **more)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]

    whole = run(tmp_path / "whole")
    epoch = [image for rank in whole for batch in rank[:2] for image in batch]
    assert len(epoch) == len(set(epoch)) == 16  # 22 images, two ranks of 11, two batches of 4 each
    resumed = run(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "step=1.ckpt")
    assert resumed == [rank[1:] for rank in whole]
