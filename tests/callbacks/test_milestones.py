"""One line an epoch where there is no terminal."""

import re

import pytest
import torch
from lightning.pytorch import Callback
from runs import loader, trainer

from sslmodules import Rotation
from sslmodules.callbacks import Milestones, OnlineKNN
from sslmodules.callbacks.milestones import _count

LINE = r"epoch (\d+)/3(, batch \d of 4)?  loss (\S+)(  probe/knn/val_accuracy (\S+))?  ([\d,]+) images/s"


class Losses(Callback):
    """All losses as the method returns them."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(trainer.callback_metrics["train/loss"].item())


def method():
    torch.manual_seed(0)
    return Rotation("conv4", encoder_args={"widths": (4, 8)}, warmup_epochs=0)


def test_a_line_an_epoch_has_the_mean_loss_and_what_was_validated_in_it(tmp_path, capsys):
    losses = Losses()
    callbacks = [Milestones(), OnlineKNN(4), losses]
    settings = {"max_epochs": 3, "accumulate_grad_batches": 2, "check_val_every_n_epoch": 2}
    trainer(tmp_path, callbacks=callbacks, **settings).fit(method(), loader(32), loader(16))
    lines = [re.fullmatch(LINE, line) for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line[1] for line in lines] == ["1", "2", "3"]
    for number, line in enumerate(lines):
        assert float(line[3]) == pytest.approx(sum(losses.seen[4 * number : 4 * number + 4]) / 4, rel=1e-3)
        assert (line[5] is not None) == (number == 1)


def test_a_long_epoch_has_lines_in_its_middle(tmp_path, capsys):
    trainer(tmp_path, callbacks=[Milestones(every_seconds=0)], max_epochs=3).fit(method(), loader(32))
    lines = [re.fullmatch(LINE, line) for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line[2] for line in lines] == 3 * [", batch 1 of 4", ", batch 2 of 4", ", batch 3 of 4", None]


def test_validation_does_not_count_as_training(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Clock(Callback):
        def on_train_batch_start(self, *args):
            clock[0] += 1

        def on_validation_batch_start(self, *args):
            clock[0] += 1000

    trainer(tmp_path, callbacks=[Milestones(5000), Clock()], max_epochs=1).fit(method(), loader(32), loader(16))
    assert "  8 images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(5, 3, 8, 8),
        (torch.zeros(5, 3, 8, 8), torch.zeros(5)),
        {"image": torch.zeros(5, 3, 8, 8)},
        {"views": [torch.zeros(5, 3, 8, 8), torch.zeros(5, 3, 8, 8)]},
        [[torch.zeros(5, 3, 8, 8), torch.zeros(5, 3, 8, 8)], torch.zeros(5)],
        ([torch.zeros(3, 8, 8)] * 5, [{}] * 5),
    ],
)
def test_images_are_counted_in_every_kind_of_batch(batch):
    assert _count(batch) == 5
