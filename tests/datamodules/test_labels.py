"""Class-balanced fractions, counted by hand."""

import numpy as np
import pytest
import torch

from sslmodules.datamodules import LabeledDataModule, UnlabeledDataModule, balanced_indices
from sslmodules.datamodules.images import TensorImages, class_numbers
from sslmodules.datamodules.labels import hold_out, keep_labels, labels_of

LABELS = torch.tensor([0] * 100 + [1] * 50 + [2] * 3 + [-1] * 40)


def counts(indices):
    return [int((LABELS[indices] == label).sum()) for label in (-1, 0, 1, 2)]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.1, [0, 10, 5, 1]), (0.01, [0, 1, 1, 1]), (0.29, [0, 29, 14, 1]), (1.0, [0, 100, 50, 3])],
)
def test_each_class_gives_its_share_and_at_least_one(fraction, expected):
    indices = balanced_indices(LABELS, fraction)
    assert counts(indices) == expected
    assert indices.tolist() == sorted(set(indices.tolist()))


def test_one_percent_lies_inside_ten_percent_of_the_same_seed():
    previous: set[int] = set()
    for fraction in (0.01, 0.05, 0.1, 0.5, 1.0):
        now = set(balanced_indices(LABELS, fraction, seed=5).tolist())
        assert previous <= now
        previous = now


def test_the_seed_decides():
    assert torch.equal(balanced_indices(LABELS, 0.1, seed=1), balanced_indices(LABELS, 0.1, seed=1))
    assert not torch.equal(balanced_indices(LABELS, 0.1, seed=1), balanced_indices(LABELS, 0.1, seed=2))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="lies in"):
        balanced_indices(LABELS, fraction)


def test_held_out_images_are_balanced_and_never_stay():
    stays, held = hold_out(LABELS, 0.1)
    assert counts(held) == [0, 10, 5, 1]
    assert sorted(stays.tolist() + held.tolist()) == list(range(len(LABELS)))


def test_a_class_of_one_image_stays():
    stays, held = hold_out(torch.tensor([0] * 10 + [1] + [-1] * 5), 0.5)
    assert 10 in stays.tolist()
    assert len(held) == 5


def test_images_without_labels_are_held_out_by_their_number():
    assert [len(part) for part in hold_out(torch.full((50,), -1), 0.1)] == [45, 5]
    assert [len(part) for part in hold_out(torch.full((50,), -1), 0.0)] == [50, 0]


def test_labels_are_kept_within_the_training_part_only():
    part = torch.arange(0, 193, 2)
    indices, labels = keep_labels(LABELS, part, 0.1, "keep")
    assert torch.equal(indices, part)
    known = torch.nonzero(labels >= 0).flatten()
    assert set(known.tolist()) <= set(part.tolist())
    assert torch.equal(labels[known], LABELS[known])
    assert torch.equal(keep_labels(LABELS, part, 0.1, "drop")[0], known)
    with pytest.raises(ValueError, match="'keep' or 'drop'"):
        keep_labels(LABELS, part, 0.1, "hide")


def test_a_target_transform_is_obeyed():
    class Shifted:
        targets = [0, 1]
        target_transform = staticmethod(lambda label: label + 5)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(1, 2, 2), self.target_transform(self.targets[index])

    assert labels_of(Shifted()).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (1.5, r"a label is 1\.5, expected the number of a class from 0, or -1 for none"),
        (np.float32(2), r"a label is .*2\.0.*, expected the number"),
        (torch.tensor([0.0, 1.0]), r"a label is tensor\(\[0., 1.\]\), expected the number"),
        ("cat", "a label is 'cat', expected the number"),
        (-2, "a label is -2, expected the number of a class from 0, or -1 for none"),
    ],
)
def test_labels_that_are_no_class_are_refused_in_any_batch(label, sentence):
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    items = [(image, 0)] * 5 + [(image, label)]
    data = LabeledDataModule(items, val=items, batch_size=2, num_workers=0)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(ValueError, match=sentence):
            list(loader)
    with pytest.raises(ValueError, match=sentence):
        labels_of(items)
    assert len(list(UnlabeledDataModule(items, batch_size=2, num_workers=0).train_dataloader())) == 3  # nobody reads it


def test_labels_of_tensors_and_arrays_are_whole_numbers():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for labels in (torch.tensor([0.0, 1.0]), torch.tensor([0, -2])):
        with pytest.raises(ValueError, match="a label is"):
            TensorImages(images, labels)
    for labels in (np.array([[1], [0]]), np.array([1, 0], dtype=np.uint8), [torch.tensor(1), np.int32(0)]):
        assert class_numbers(labels).tolist() == [1, 0]
