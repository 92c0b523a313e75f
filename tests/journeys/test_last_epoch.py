"""What a run leaves behind: the last epoch, and never a broken file."""

import subprocess

import pytest
import torch
from flowers import flowers

FIT = ["fit", "--model", "SimCLR", "--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}']
DATA = ["--data", "ImageFolder", "--data.root", "photos", "--data.size", 16, "--data.batch_size", 8]
CPU = ["--trainer.accelerator", "cpu"]


@pytest.mark.parametrize("epochs", [3, 15])
def test_the_last_epoch_is_in_a_file_where_every_tenth_validates(newcomer, epochs):
    if epochs == 3:
        flowers(newcomer.folder / "photos", 16, side=24)
    root = newcomer.folder / str(epochs)
    rare = ["--trainer.check_val_every_n_epoch", 10, "--trainer.default_root_dir", root]
    said = newcomer.run(*FIT, *DATA, *CPU, *rare, "--trainer.max_epochs", epochs)
    [last] = root.rglob("last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    steps = checkpoint["global_step"] / epochs
    assert steps == checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] > 0
    assert f"last checkpoint   {last.relative_to(newcomer.folder)}" in said


def test_a_disk_that_is_too_small_is_said_before_training(newcomer):
    disk = newcomer.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a filesystem needs root")
    try:
        large = ["--model.hidden_dim", 4096, "--trainer.default_root_dir", disk]
        said = newcomer.run(*FIT, *large, *DATA, *CPU, status=1)
        assert not list(disk.rglob("*.ckpt"))
    finally:
        subprocess.run(["umount", disk], check=True)
    error = said.strip().splitlines()[-1]
    assert error.startswith("sslmodules: error: ")
    assert "last.ckpt cannot be written (there is too little space): " in error
    assert "bytes are needed and " in error
    assert "Traceback" not in said
