"""Checkpoints that are whole or not there, through a whole Trainer."""

import os
import signal
import subprocess

import pytest
import torch
from lightning.pytorch import Callback
from runs import loader, trainer

from sslmodules import SimCLR
from sslmodules.callbacks import LastCheckpoint
from sslmodules.checkpoint_io import AtomicCheckpointIO
from sslmodules.storage import StorageError

TINY = {"encoder": "conv4", "encoder_args": {"widths": (4,)}, "hidden_dim": 4, "output_dim": 4, "warmup_epochs": 0}


def fit(folder, ckpt_path=None, callbacks=(), model=None, **kwargs):
    run = trainer(
        folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[LastCheckpoint(folder / "run"), *callbacks],
        enable_checkpointing=True,
        **kwargs,
    )
    run.fit(model or SimCLR(**TINY), loader(16, 4), ckpt_path=ckpt_path)
    return run


@pytest.fixture
def disk(tmp_path):
    """Mount filesystems of some size; all are gone after the test."""
    mounted = []

    def mount(name, size):
        folder = tmp_path / name
        folder.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("mounting a filesystem needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def last(folder):
    return torch.load(folder / "run" / "last.ckpt", weights_only=True)["global_step"]


def test_a_full_temporary_folder_is_none_of_its_business(tmp_path, disk, monkeypatch):
    full = disk("full", "4k")
    (full / "x").write_bytes(b"x" * 4096)
    monkeypatch.setenv("TMPDIR", str(full))
    monkeypatch.setattr("tempfile.tempdir", str(full))
    fit(tmp_path, max_epochs=1)
    assert last(tmp_path) == 4


class Fill(Callback):
    """Fill the disk at the start of the third epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            with pytest.raises(OSError, match="No space left"), self.path.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)


def test_a_disk_that_fills_up_ends_the_run_in_one_sentence_and_the_last_checkpoint_is_whole(disk):
    folder = disk("small", "2m")
    with pytest.raises(StorageError, match=r"last.ckpt cannot be written .No space left on device.: [\d,]+ bytes are "):
        fit(folder, max_epochs=4, callbacks=[Fill(folder / "other")])
    assert last(folder) == 8
    assert os.listdir(folder / "run") == ["last.ckpt"]
    (folder / "other").unlink()
    assert fit(folder, folder / "run" / "last.ckpt", max_epochs=4).global_step == 16


def test_too_little_space_is_said_before_the_first_step(disk, monkeypatch):
    folder = disk("small", "64k")
    monkeypatch.setattr(SimCLR, "training_step", lambda *_: pytest.fail("training began"))
    model = SimCLR(**TINY | {"hidden_dim": 4096})
    with pytest.raises(StorageError, match=r"too little space.: [\d,]+ bytes are needed and [\d,]+ bytes are free"):
        fit(folder, model=model, max_epochs=1)


def test_a_read_only_folder_is_said_before_the_first_step(disk, monkeypatch):
    folder = disk("read-only", "1m")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    monkeypatch.setattr(SimCLR, "training_step", lambda *_: pytest.fail("training began"))
    with pytest.raises(StorageError, match="Read-only file system"):
        fit(folder, max_epochs=1)


def test_a_kill_in_the_middle_of_writing_leaves_the_last_checkpoint_and_its_rest_goes_at_the_next_start(tmp_path):
    fit(tmp_path, max_epochs=1)
    pid = os.fork()
    if pid == 0:
        fsync = os.fsync
        os.fsync = lambda fd: (fsync(fd), os.kill(os.getpid(), signal.SIGKILL))
        fit(tmp_path, tmp_path / "run" / "last.ckpt", max_epochs=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "run")) == 2
    assert last(tmp_path) == 4
    fit(tmp_path, tmp_path / "run" / "last.ckpt", max_epochs=2)
    assert os.listdir(tmp_path / "run") == ["last.ckpt"]
    assert last(tmp_path) == 8


def test_a_checkpoint_may_be_loaded_while_it_is_replaced(tmp_path):
    """Readers see the old file or the new one, at any moment."""
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"number": torch.zeros(1000)}, path)
    pid = os.fork()
    if pid == 0:
        for n in range(10_000):
            io.save_checkpoint({"number": torch.full((1000,), n)}, path)
    seen = []
    try:
        while len(set(seen)) < 5:
            numbers = io.load_checkpoint(path, weights_only=True)["number"]
            assert numbers.tolist() == [numbers[0]] * 1000
            seen.append(numbers[0].item())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
