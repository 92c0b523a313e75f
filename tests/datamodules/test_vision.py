"""torchvision's own file formats, written small."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from sslmodules.datamodules import CIFAR10, STL10, FashionMNIST


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name, size):
        content = {
            "data": random.integers(0, 256, (size, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(size)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
        return name, md5(folder / name)

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write("data_batch_1", 60), write("data_batch_2", 40)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", 20)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


@pytest.fixture
def stl(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name, array):
        (folder / name).write_bytes(array.astype(np.uint8).tobytes())
        return [name, md5(folder / name)]

    def images(size):
        return random.integers(0, 256, (size, 3, 96, 96))

    write("class_names.txt", np.frombuffer(b"airplane\nbird\n", dtype=np.uint8))
    train = [
        write("train_X.bin", images(10)),
        write("train_y.bin", np.arange(10) + 1),
        write("unlabeled_X.bin", images(12)),
    ]
    test = [write("test_X.bin", images(6)), write("test_y.bin", np.arange(6) + 1)]
    monkeypatch.setattr(datasets.STL10, "train_list", train)
    monkeypatch.setattr(datasets.STL10, "test_list", test)
    return tmp_path


@pytest.fixture
def fashion(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("train", 100), ("t10k", 20)):
        images = random.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = np.arange(size, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, size, 28, 28) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, size) + labels.tobytes())
    return tmp_path


def test_cifar10_yields_the_pictures_of_the_files(cifar):
    data = CIFAR10(str(cifar), download=False, batch_size=90)
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape == (90, 3, 32, 32)
    official = datasets.CIFAR10(str(cifar), train=True)
    index = int(data.split("train").indices[7])
    image, label = data.split("train")[7]
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(official.data[index]))
    assert label == official.targets[index]
    assert labels.bincount().tolist() == [9] * 10
    assert next(iter(data.val_dataloader()))[1].tolist() == list(np.array(official.targets)[data.split("val").indices])
    assert len(data.split("test")) == len(data.split("predict")) == 20


def test_cifar10_arrays_are_not_copied(cifar):
    data = CIFAR10(str(cifar), download=False)
    data.setup("fit")
    assert data.split("train").dataset.images.data_ptr() == data.split("val").dataset.images.data_ptr()
    assert data.split("train").dataset.images.is_contiguous()


def test_val_fraction_zero_validates_on_the_test_images(cifar):
    data = CIFAR10(cifar, download=False, val_fraction=0)
    assert data.hparams.root == str(cifar)
    assert len(data.split("train")) == 100
    assert torch.equal(data.split("val").dataset.images, data.split("test").dataset.images)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_fashion_mnist_in_both_modes(fashion, mode, channels):
    data = FashionMNIST(str(fashion), download=False, mode=mode, batch_size=30, label_fraction=0.2)
    data.prepare_data()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (30, channels, 28, 28)
    assert images.dtype == torch.uint8
    assert set(labels.tolist()) <= set(range(-1, 10))
    assert data.split("train").labels.ge(0).sum() == 20
    assert data.split("train").dataset.images.untyped_storage().nbytes() == 100 * 28 * 28


def test_stl10_pairs_unlabeled_with_labeled_images(stl):
    data = STL10(str(stl), download=False, batch_size=12)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == batch["labeled_image"].shape == (12, 3, 96, 96)
    assert batch["image"].dtype == batch["labeled_image"].dtype == torch.uint8
    assert set(batch["labeled_label"].tolist()) == set(range(10))
    official = datasets.STL10(str(stl), split="unlabeled")
    assert torch.equal(data.split("train")[5], torch.from_numpy(official.data[5].copy()))
    assert data.split("val") is data.split("test")
    assert next(iter(data.val_dataloader()))[1].tolist() == list(range(6))


@pytest.mark.parametrize("kind", [CIFAR10, FashionMNIST, STL10])
def test_absent_files_are_one_sentence(kind, tmp_path):
    data = kind(str(tmp_path), download=False)
    for attempt in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(FileNotFoundError, match=rf"{kind.__name__} has no intact files .*download=True"):
            attempt()


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*no route to host"):
        CIFAR10(str(tmp_path)).prepare_data()
