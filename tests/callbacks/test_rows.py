"""Which item of the data each row of a prediction belongs to, over processes and files that cannot be read."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from runs import images, trainer
from torch.utils.data import DataLoader, Dataset

from sslmodules.callbacks import EmbeddingWriter
from sslmodules.callbacks.rows import Places, gathered
from sslmodules.storage import StorageError


class Numbered(LightningModule):
    """Gives the first pixel of each image as its features, so that a test can tell which one is which."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return {"features": batch.flatten(1)[:, :1], "labels": None}


def processes(parts, path, columns):
    """What the first of several processes gathers, each of which has rows of the places in a part."""
    world = len(parts)
    strategy = SimpleNamespace(
        barrier=lambda: None, reduce=lambda count, reduce_op: sum(map(len, parts)), root_device=torch.device("cpu")
    )
    for rank in reversed(range(world)):
        run = SimpleNamespace(world_size=world, global_rank=rank, is_global_zero=rank == 0, strategy=strategy)
        places = torch.tensor(parts[rank], dtype=torch.long)
        chunks = {name: [column(place) for place in places.split(2)] for name, column in columns.items()}
        found = gathered(run, list(places.split(2)), chunks, path)
        assert (found is None) == (rank > 0)
    return found


def test_rows_of_several_processes_are_gathered_once_each_and_in_order(tmp_path):
    columns = {"x": lambda place: place[:, None] * 1.5, "names": lambda place: [f"n{i}" for i in place.tolist()]}
    found = processes([[0, 3, 6, 0], [1, 4, 7], [2, 5, 0]], tmp_path / "e.npz", columns)  # padded by wrapping
    assert found.places.tolist() == list(range(8))
    assert found.columns["x"].flatten().tolist() == [1.5 * i for i in range(8)]
    assert found.columns["names"] == [f"n{i}" for i in range(8)]
    assert list(tmp_path.iterdir()) == []


def test_a_process_without_rows_disturbs_none(tmp_path):
    found = processes([[], [4, 2]], tmp_path / "e.npz", {"x": lambda place: place})
    assert found.places.tolist() == found.columns["x"].tolist() == [2, 4]


def test_the_part_of_a_process_on_another_disk_is_missed_in_one_sentence(tmp_path):
    strategy = SimpleNamespace(
        barrier=lambda: None, reduce=lambda count, reduce_op: count, root_device=torch.device("cpu")
    )
    run = SimpleNamespace(world_size=2, global_rank=0, is_global_zero=True, strategy=strategy)
    with pytest.raises(ValueError, match=r"1\.pt, the part of another process, is not here; pass a path that all"):
        gathered(run, [torch.arange(2)], {}, tmp_path / "e.npz")


class Partial(Dataset):
    """Three items, of which the second could not be read."""

    def __len__(self):
        return 3

    def left_out(self, indices):
        return torch.tensor([i == 1 for i in indices])


@pytest.mark.parametrize(
    ("batch", "count", "rows", "places"),
    [
        ([0, 1, 2], 2, [0, 1], [0, 2]),  # the batch is shorter
        ([0, 1, 2], 3, [0, 2], [0, 2]),  # another file stands in its place
        ([1], 1, [], []),
        ([0, 2], 2, [0, 1], [0, 2]),
    ],
)
def test_what_could_not_be_read_has_no_row(batch, count, rows, places):
    run = SimpleNamespace(predict_dataloaders=DataLoader(Partial()))
    found = Places(run).of(batch, count, 0)
    assert [x.tolist() for x in found] == [rows, places]


def test_a_prediction_with_too_many_rows_is_refused():
    run = SimpleNamespace(predict_dataloaders=DataLoader(Partial()))
    with pytest.raises(ValueError, match="predict_step gave 5 rows for a batch of 2 items"):
        Places(run).of([0, 2], 5, 0)


def test_a_part_of_the_data_and_a_loader_in_another_order_keep_their_rows(tmp_path):
    x = torch.arange(9).view(9, 1, 1, 1)
    path = tmp_path / "e.npz"
    trainer(tmp_path, callbacks=[EmbeddingWriter(path)]).predict(Numbered(), DataLoader(x, 2, sampler=[5, 3, 8, 0]))
    with np.load(path) as saved:
        assert saved["features"].flatten().tolist() == [0, 3, 5, 8]
    trainer(tmp_path, callbacks=[EmbeddingWriter(path)], limit_predict_batches=2).predict(Numbered(), DataLoader(x, 2))
    with np.load(path) as saved:
        assert saved["features"].flatten().tolist() == [0, 1, 2, 3]


def test_two_loaders_follow_each_other(tmp_path):
    x = torch.arange(5).view(5, 1, 1, 1)
    run = trainer(tmp_path, callbacks=[EmbeddingWriter(tmp_path / "e.npz")])
    run.predict(Numbered(), [DataLoader(x, 2), DataLoader(10 + x, 3)])
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["features"].flatten().tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def test_a_disk_without_room_is_told_after_the_first_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=159))
    steps = []

    class Counting(Numbered):
        def predict_step(self, batch, batch_idx):
            steps.append(batch_idx)
            return super().predict_step(batch, batch_idx)

    run = trainer(tmp_path, callbacks=[EmbeddingWriter(tmp_path / "e.npz")])
    with pytest.raises(StorageError, match=r"e\.npz cannot be written .*: 160 bytes are needed and 159 bytes are free"):
        run.predict(Counting(), DataLoader(images(40)[:][0], 4))  # 4 bytes each
    assert steps == [0]
    assert not Path(tmp_path / "e.npz").exists()
