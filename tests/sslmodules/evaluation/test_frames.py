"""A linear probe of single frames."""

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from sslmodules.evaluation import probe_frames


class Whole(LightningModule):
    """A frame is what the loader yields at one time."""

    def frames(self, x):
        return x.transpose(1, 2)


def loader(count, seed, labels=True):
    """Two classes that show in the first three of four frames, in two of five numbers."""
    y = torch.arange(count) % 2
    noise = 0.1 * torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))
    x = noise.clone()
    x[:, :2, :3] += (2 * y - 1).view(-1, 1, 1)
    x[:, :, 3] = 0
    return DataLoader(TensorDataset(x, y) if labels else x, 16)


def test_every_frame_counts_by_itself():
    # Of the fourth frame, which is always the same, one class or the other is right: half of the sequences.
    assert probe_frames(Whole(), loader(64, 0), loader(32, 1)) == (3 + 0.5) / 4


def test_frames_to_fit_on_can_be_thinned_out_and_read_otherwise():
    read = []

    def first_three(x):
        read.append(len(x))
        return x.transpose(1, 2)[:, :3]

    assert probe_frames(Whole(), loader(64, 0), loader(32, 1), read=first_three, every=3) == 1
    assert read == [16] * 6


def test_without_labels_there_is_no_probe():
    assert probe_frames(Whole(), loader(64, 0, labels=False), loader(32, 1)) is None
