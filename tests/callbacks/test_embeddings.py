"""What ``predict`` gives, as a table and in TensorBoard's projector."""

import numpy as np
import pytest
import torch
from runs import images, loader, trainer
from torch.utils.data import DataLoader

from sslmodules import SimCLR
from sslmodules.callbacks import EmbeddingProjector, EmbeddingWriter, embeddings


def method():
    torch.manual_seed(0)
    return SimCLR("conv4", encoder_args={"widths": (4, 8)})


def test_a_table_holds_the_features_and_labels_in_order(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    module = method()
    trainer(tmp_path, callbacks=[EmbeddingWriter(tmp_path / "e.parquet")]).predict(module, loader(20))
    table = parquet.read_table(tmp_path / "e.parquet").to_pydict()
    x, y = images(20)[:]
    assert list(table) == ["features", "labels"]
    np.testing.assert_allclose(table["features"], module.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-6)
    assert table["labels"] == y.tolist()


def test_a_table_without_pyarrow_is_one_sentence_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    run = trainer(tmp_path, callbacks=[EmbeddingWriter(tmp_path / "e.parquet")])
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install .*or pass a path ending in \.npz"):
        run.predict(method(), loader(8))


def test_the_projector_shows_the_first_features_with_labels_and_thumbnails(tmp_path):
    module = method()
    folder = tmp_path / "projector"
    run = trainer(tmp_path, callbacks=[EmbeddingProjector(str(folder), images=11, side=8)])
    run.predict(module, loader(20))
    (found,) = folder.rglob("tensors.tsv")
    x, y = images(20)[:]
    np.testing.assert_allclose(np.loadtxt(found), module.eval()(x[:11]).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert found.with_name("metadata.tsv").read_text().split() == [str(label) for label in y[:11].tolist()]
    assert found.with_name("sprite.png").is_file()
    assert "single_image_dim: 8" in (folder / "projector_config.pbtxt").read_text()


def test_the_projector_does_without_labels_and_without_a_folder(tmp_path):
    folder = tmp_path / "projector"
    unlabeled = DataLoader(images(6)[:][0], 4)
    trainer(tmp_path, callbacks=[EmbeddingProjector(str(folder))]).predict(method(), unlabeled)
    (found,) = folder.rglob("tensors.tsv")
    assert np.loadtxt(found).shape == (6, 8)
    assert not found.with_name("metadata.tsv").exists()
    trainer(tmp_path, callbacks=[EmbeddingProjector()]).predict(method(), unlabeled)


def test_thumbnails_are_the_middle_of_the_image():
    image = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    image[..., 2:6] = 255
    assert torch.equal(embeddings._thumbnails(image, 2), torch.ones(1, 3, 2, 2))
