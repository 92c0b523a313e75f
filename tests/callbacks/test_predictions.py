"""Answers of classifiers as tables."""

import csv

import pytest
import torch
from method_list import METHODS
from runs import clips, images, loader, sounds, trainer
from torch.utils.data import DataLoader, TensorDataset

from sslmodules import FineTune, LinearProbe
from sslmodules.callbacks import EmbeddingWriter, PredictionWriter

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}
NAMES = ["a", "b, or so", "ç", 'd"']


def probe(**kwargs):
    torch.manual_seed(0)
    return FineTune(**{**TINY, "class_names": NAMES, **kwargs}).eval()


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def predicted(tmp_path, module, data, **kwargs):
    path = tmp_path / "p.csv"
    trainer(tmp_path, callbacks=[PredictionWriter(str(path), **kwargs)]).predict(module, data)
    return table(path)


def test_a_row_has_the_most_probable_classes_first(tmp_path):
    module = probe()
    header, *rows = predicted(tmp_path, module, loader(10), k=3)
    assert header == ["row", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    expected = module.logits(images(10)[:][0]).softmax(1)
    for i, (place, *cells) in enumerate(rows):
        assert place == str(i)
        assert cells[::2] == [NAMES[c] for c in expected[i].argsort(descending=True)[:3]]
        assert [float(cell) for cell in cells[1::2]] == pytest.approx(
            expected[i].sort().values.flip(0)[:3].tolist(), 1e-4
        )


@pytest.mark.parametrize("k", [4, 50])
def test_there_are_never_more_columns_than_classes(tmp_path, k):
    header, *rows = predicted(tmp_path, probe(), loader(3), k=k)
    assert len(header) == 1 + 2 * 4
    assert all(sum(map(float, row[2::2])) == pytest.approx(1, abs=1e-4) for row in rows)


def test_of_no_class_nothing_can_be_written():
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        PredictionWriter(k=0)


def test_images_with_several_classes_have_a_probability_for_each(tmp_path):
    module = probe(multi_label=True)
    header, *rows = predicted(tmp_path, module, loader(10), k=2)
    assert header == ["row", *NAMES]
    expected = module.logits(images(10)[:][0]).sigmoid()
    for row, values in zip(rows, expected.tolist(), strict=True):
        assert [float(cell) for cell in row[1:]] == pytest.approx(values, 1e-4)


def test_classes_without_names_are_numbered(tmp_path):
    rows = predicted(tmp_path, LinearProbe(**TINY, num_classes=3), loader(4), k=3)[1:]
    assert all(sorted(row[1::2]) == ["0", "1", "2"] for row in rows)


@pytest.mark.parametrize(("method", "data"), [("CPC.audio", sounds), ("VideoColorization", clips)])
def test_sounds_and_videos_are_classified_too(tmp_path, method, data):
    run, pretrained = trainer(tmp_path), METHODS[method]()
    run.strategy.connect(pretrained)
    run.save_checkpoint(tmp_path / "method.ckpt")
    module = LinearProbe(str(tmp_path / "method.ckpt"), class_names=NAMES)
    rows = predicted(tmp_path, module, DataLoader(data(6), 4))[1:]
    assert [row[0] for row in rows] == [str(i) for i in range(6)]
    assert all(set(row[1::2]) == set(NAMES) for row in rows)


def test_a_classifier_writes_embeddings_if_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for writer, written in ((EmbeddingWriter(), False), (EmbeddingWriter("embeddings.npz"), True)):
        trainer(tmp_path, callbacks=[writer]).predict(probe(), loader(4))
        assert (tmp_path / "embeddings.npz").exists() == written


def test_one_row_a_file_with_several_labels_in_the_data(tmp_path):
    x, _ = images(5)[:]
    data = DataLoader(TensorDataset(x, torch.ones(5, 4)), 2)
    assert len(predicted(tmp_path, probe(multi_label=True), data)) == 6
