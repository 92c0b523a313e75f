"""Pictures of a run: when they are drawn, of which images, and that they leave the run as it is."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from runs import images, loader, same_bits, snapshot, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sslmodules import LinearProbe, MoCo, Rotation, SimCLR
from sslmodules.callbacks import Pictures
from sslmodules.tiles import GREEN, RED, Tiles

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}


class Watched(LightningModule):
    """Notes what it is asked to show."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(768, 1)
        self.shown = []

    def pictures(self, images):
        self.shown.append((self.global_step, images.clone()))
        return {"seen": Tiles(images[:, None] / 255, ["image"])}

    def training_step(self, batch, batch_idx):
        return self.net((batch[0] if isinstance(batch, list) else batch).flatten(1) / 255.0).mean()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def steps_shown(folder, *loaders, every=10, **kwargs):
    module = Watched()
    trainer(folder, callbacks=[Pictures(every, images=3)], **kwargs).fit(module, *loaders)
    return [step for step, _ in module.shown], [x for _, x in module.shown]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_epochs": 1}, [0, 2]),  # the shortest run shows its end too
        ({"max_epochs": 2, "every": 1}, [0, 2, 4]),  # not twice where interval and end fall together
        ({"max_epochs": 5, "every": 2}, [0, 4, 8, 10]),
        ({"max_steps": 3, "max_epochs": 9}, [0, 3]),
    ],
)
def test_they_are_drawn_at_the_start_at_the_interval_and_at_the_end(limits, expected, tmp_path):
    for loaders in ([loader(16), loader(16, seed=1)], [loader(16)]):
        assert steps_shown(tmp_path, *loaders, **limits)[0] == expected


def test_a_resumed_fit_shows_its_start_and_its_end(tmp_path):
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Watched(), loader(16))
    first.save_checkpoint(tmp_path / "first.ckpt")
    module = Watched()
    run = trainer(tmp_path, max_epochs=3, callbacks=[Pictures()])
    run.fit(module, loader(16), ckpt_path=tmp_path / "first.ckpt")
    assert [step for step, _ in module.shown] == [2, 6]


def test_they_show_validation_images_of_all_the_set_and_always_the_same(tmp_path):
    held_out = images(9, seed=1)
    shown = steps_shown(tmp_path, loader(16), DataLoader(held_out, 4), max_epochs=2)[1]
    assert all(torch.equal(x, held_out[:][0][[0, 3, 6]]) for x in shown)


def test_without_validation_images_or_places_in_them_they_show_the_first_training_batch(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(images(8, seed=1))

    first = images(16)[:][0][:3]
    for loaders in ([loader(16)], [loader(16), DataLoader(Stream(), 4)]):
        shown = steps_shown(tmp_path, *loaders, max_epochs=2)[1]
        assert all(torch.equal(x, first) for x in shown)
    assert torch.equal(
        steps_shown(tmp_path, loader(16), loader(16, seed=1), max_epochs=1, limit_val_batches=0)[1][0], first
    )


def test_no_random_number_is_taken_from_the_run(tmp_path):
    class Random(Dataset):
        """Draws from every generator that there is."""

        def __len__(self):
            return 8

        def __getitem__(self, index):
            factor = random.random() * np.random.rand()  # noqa: NPY002  # the generator that all share
            return (255 * factor * torch.rand(3, 16, 16)).to(torch.uint8)

    results = []
    for callbacks in ([], [Pictures(1)]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        module = MoCo(**TINY, queue_size=16)
        run = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
        run.fit(module, DataLoader(Random(), 4, shuffle=True), DataLoader(Random(), 4))
        following = [random.random(), np.random.rand(), torch.rand(())]  # noqa: NPY002
        results.append({**snapshot(module), "following": torch.tensor(following)})
    assert same_bits(*results)


def test_each_is_a_grid_on_disk_and_in_tensorboard(tmp_path):
    torch.manual_seed(0)
    logger = TensorBoardLogger(tmp_path, version=0)
    run = trainer(tmp_path, max_epochs=1, callbacks=[Pictures(images=3, min_side=20)], logger=logger)
    run.fit(MoCo(**TINY, queue_size=16), loader(16), loader(16, seed=1))
    folder = tmp_path / "lightning_logs" / "version_0"
    files = sorted(folder.rglob("*.png"))
    assert [f.name for f in files] == ["views-step=0.png", "views-step=2.png"]
    found = np.asarray(Image.open(files[0])).astype(int)
    first = images(16, seed=1)[0][0].numpy().transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)  # 16 px, doubled to reach 20
    places = np.lib.stride_tricks.sliding_window_view(found, (32, 32, 3))[:, :, 0]
    assert (np.abs(places - first).max((2, 3, 4)) <= 1).sum() == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Images("pictures/views")] == [0, 2]


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts_are_drawn(channels, tmp_path):
    class Plain(SimCLR):
        def make_views(self, images):
            return [images / 255.0, images / 255.0]

    run = trainer(tmp_path, max_steps=1, callbacks=[Pictures()], logger=TensorBoardLogger(tmp_path))
    run.fit(Plain(**TINY, in_channels=channels, warmup_epochs=0), loader(8, channels=channels))
    assert len(list(tmp_path.rglob("*.png"))) == 2


@pytest.mark.parametrize("method", [Rotation, partial(LinearProbe, num_classes=4)])
def test_right_and_wrong_are_marked(method, tmp_path):
    torch.manual_seed(0)
    run = trainer(tmp_path, max_epochs=1, callbacks=[Pictures()], logger=TensorBoardLogger(tmp_path))
    run.fit(method(**TINY), loader(16), loader(16, seed=1))
    files = list(tmp_path.rglob("*.png"))
    assert len(files) == 2
    for file in files:
        colors = {tuple(color) for color in np.asarray(Image.open(file)).reshape(-1, 3).tolist()}
        assert colors & {GREEN, RED}
