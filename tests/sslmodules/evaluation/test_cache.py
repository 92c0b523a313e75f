"""Features are computed once, and again when weights or images have changed."""

import os

import pytest
import runs
import torch
from method_list import METHODS
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sslmodules import SSLModule
from sslmodules.datamodules import UnlabeledDataModule
from sslmodules.evaluation.cache import cached, data_key, in_order, weights_key
from sslmodules.evaluation.features import Features, features_of


def module(**kwargs):
    torch.manual_seed(0)
    return SSLModule("conv4", encoder_args={"widths": [2, 3, 4]}, **kwargs)


def test_in_order_takes_images_evenly_from_the_first_on():
    loader = DataLoader(torch.arange(10), batch_size=3, shuffle=True, drop_last=True)
    assert torch.cat(list(in_order(loader))).tolist() == list(range(10))
    assert torch.cat(list(in_order(loader, 4))).tolist() == [0, 2, 5, 7]
    assert [len(batch) for batch in in_order(loader, 4)] == [3, 1]


def test_in_order_takes_the_labeled_images_that_ride_along():
    data = UnlabeledDataModule(runs.images(12), labeled=runs.images(6, seed=1), batch_size=4)
    images, labels = zip(*in_order(data.train_dataloader()), strict=True)
    assert torch.equal(torch.cat(images), runs.images(6, seed=1)[:][0])
    assert torch.cat(labels).tolist() == [0, 1, 2, 3, 0, 1]


def test_a_loader_without_places_is_one_sentence():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="DataLoader has no dataset with places"):
        in_order(DataLoader(Stream()))


def test_features_are_the_representation_and_the_means_of_stages():
    images, labels = runs.images(7)[:]
    encoder = module(mean=[0.5] * 3, std=[0.2] * 3)
    found = features_of(encoder, runs.loader(7, 4), stages=2)
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(found.representation, encoder(images))
        maps = encoder.features(images)
    assert torch.equal(found.labels, labels)
    assert list(found.stages) == [1, 2]  # of three: the last among them, evenly
    for number, stage in found.stages.items():
        torch.testing.assert_close(stage, maps[number].mean((2, 3)))


def test_features_are_computed_once(tmp_path):
    made = Features(torch.rand(3, 2), torch.tensor([0, 1, 1]), {2: torch.rand(3, 4), 10: torch.rand(3, 1)})
    calls = []

    def compute():
        calls.append(1)
        return made

    file = tmp_path / "features" / "key.safetensors"
    for _ in range(2):
        found = cached(file, compute)
        assert torch.equal(found.representation, made.representation)
        assert torch.equal(found.labels, made.labels)
        assert list(found.stages) == [2, 10]
        assert all(torch.equal(found.stages[n], made.stages[n]) for n in made.stages)
    assert len(calls) == 1
    assert [f.name for f in file.parent.iterdir()] == ["key.safetensors"]


def foreign(path):
    save_file({"something": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no features at all, but long enough for a header"),
        foreign,
    ],
)
def test_a_file_that_is_truncated_or_foreign_is_computed_again(spoil, tmp_path, capsys):
    file, made = tmp_path / "key.safetensors", Features(torch.rand(3, 2), torch.tensor([0, 1, 1]), {})
    cached(file, lambda: made)
    spoil(file)
    for _ in range(2):
        assert torch.equal(cached(file, lambda: made).representation, made.representation)
    assert capsys.readouterr().out.count("key.safetensors cannot be read") == 1


def test_weights_and_how_they_are_fed_make_the_key():
    keys = [weights_key(module()), weights_key(module(mean=[0.5] * 3, std=[0.2] * 3)), weights_key(module(size=8))]
    other = module()
    next(other.encoder.parameters()).data.view(-1)[0] += 1e-6
    keys.append(weights_key(other))
    assert len(set(keys)) == 4
    assert weights_key(module()) == keys[0]
    torch.manual_seed(0)
    sequences = METHODS["CPC.video"]()
    before = weights_key(sequences)
    next(sequences.context.parameters()).data.view(-1)[0] += 1e-6
    assert weights_key(sequences) != before  # its representation is that of the context network


def test_images_labels_and_dates_of_files_make_the_key(tmp_path):
    images, labels = runs.images(8)[:]
    file = tmp_path / "1.png"
    file.write_bytes(b"")

    def key(x=images, y=labels):
        return data_key(DataLoader(TensorDataset(x, y), batch_size=4), [str(file)])

    keys = [key(), key(x=images.flip(0)), key(y=labels.flip(0)), key(images[:4], labels[:4])]
    assert key() == keys[0]
    os.utime(file, (0, 0))
    assert len({*keys, key()}) == 5
