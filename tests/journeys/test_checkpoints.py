"""From a checkpoint to new pictures, read as those of its training; and what is said of a broken one."""

import subprocess
import sys

import numpy as np
import pytest
from flowers import flowers

SMALL = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--trainer.accelerator", "cpu"]
EMBED = """
import sslmodules
model = sslmodules.load("last.ckpt")
assert not model.training
print(*model.embed("photos/daisy/000.jpg")[0].tolist())
"""


@pytest.fixture(scope="module")
def trained(newcomer):
    """Somebody with photographs, and last.ckpt of a network that was trained on them at 24 px."""
    flowers(newcomer.folder / "photos", 12)
    data = ["--data", "ImageFolder", "--data.root", "photos", "--data.size", 24, "--data.batch_size", 6]
    newcomer.run("fit", "--model", "SimCLR", *SMALL, *data, "--trainer.max_epochs", 1)
    [last] = newcomer.folder.rglob("last.ckpt")
    last.rename(newcomer.folder / "last.ckpt")
    return newcomer


def test_photographs_are_read_as_in_the_training_by_the_shell_and_by_python(trained):
    said = trained.run("predict", "--ckpt_path", "last.ckpt", "--data", "ImageFolder", "--data.root", "photos")
    assert "--data.size 24, as in the training of last.ckpt" in said
    with np.load(trained.folder / "embeddings.npz") as saved:
        first = saved["features"][0]
    code = [sys.executable, "-c", EMBED]
    python = subprocess.run(code, cwd=trained.folder, capture_output=True, text=True, check=False)
    assert python.returncode == 0, python.stderr
    np.testing.assert_allclose(np.array(python.stdout.split(), float), first, rtol=1e-3, atol=1e-4)


def test_a_copy_that_was_cut_off_is_named_before_anything_is_written(trained):
    whole = (trained.folder / "last.ckpt").read_bytes()
    (trained.folder / "copy.ckpt").write_bytes(whole[: len(whole) // 2])
    data = ["--data", "ImageFolder", "--data.root", "photos"]
    before = sorted(trained.folder.rglob("*"))
    for command in (
        ["fit", "--model", "SimCLR", *SMALL, "--ckpt_path", "copy.ckpt"],
        ["evaluate", "--ckpt", "copy.ckpt"],
    ):
        said = trained.run(*command, *data, status=1).splitlines()
        assert said[-1].startswith("sslmodules: error: copy.ckpt is cut off after ")
    assert sorted(trained.folder.rglob("*")) == before
