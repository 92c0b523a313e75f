"""What goes wrong is said, and nothing that was good is lost by it."""

import numpy as np
import pytest
import soundfile
import torch

TINY = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def diverged(newcomer):
    """What a run says whose learning rate is absurd from the second epoch on."""
    rising = ["--model.optimizer", "SGD", "--model.optimizer.lr", 1e-3]
    rising += ["--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", 1e30]
    data = ["--data", "Digits", "--data.batch_size", 256]
    return newcomer.run("fit", "--model", "SimCLR", *TINY, *data, *rising, "--trainer.max_epochs", 6, status=1)


def test_a_run_that_diverges_ends_with_status_1_and_names_its_last_good_checkpoint(newcomer, diverged):
    sentence = diverged.split("sslmodules: error: ")[1].splitlines()[0]
    assert "the loss is nan at batch" in sentence or "the weights are not finite after optimizer step" in sentence
    assert "Traceback" not in diverged
    path = sentence.split("The last good checkpoint is ")[1].split("; go on from there")[0]
    checkpoint = torch.load(newcomer.folder / path, weights_only=True)
    assert checkpoint["global_step"] > 0
    for file in newcomer.folder.rglob("*.ckpt"):
        assert all(x.isfinite().all() for x in torch.load(file, weights_only=True)["state_dict"].values()), file


def test_recordings_with_nan_are_named_or_skipped(person):
    for number in range(9):
        samples = np.sin(np.arange(400) * 0.1 * (number + 1))
        samples[200] = np.nan if number == 4 else 0
        soundfile.write(person.folder / f"{number}.wav", samples, 8000, subtype="FLOAT")
    encoder = ["--model.encoder_args", '{"widths": [8, 16], "kernels": [8, 4], "strides": [4, 2]}', "--model.size", 192]
    model = ["--model", "CPC", *encoder, "--model.context_args", '{"dim": 12}', "--model.steps", 2]
    model += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", 1]
    data = ["--data", "AudioFolder", "--data.root", ".", "--data.window", 256, "--data.batch_size", 4]
    few = ["--data.num_workers", 0, "--data.val_fraction", 0]
    said = person.run("fit", *model, *data, *few, status=1)
    assert "4.wav cannot be read as a recording (ValueError: it holds samples that are NaN or infinite)" in said
    assert not list(person.folder.rglob("*.ckpt"))
    person.run("fit", *model, *data, *few, "--data.on_error", "skip")
    [last] = person.folder.rglob("last.ckpt")
    assert all(x.isfinite().all() for x in torch.load(last, weights_only=True)["state_dict"].values())
