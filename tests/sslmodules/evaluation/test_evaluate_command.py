"""``sslmodules evaluate`` as a user types it, on small runs."""

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import runs
import timm
import torch
from evaluation_list import DETECTOR, batches, boxed, masked
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Subset

from sslmodules import SemanticSegmentation, SimCLR
from sslmodules.cli.evaluate import run
from sslmodules.datamodules import Digits, LabeledDataModule, UnlabeledDataModule
from sslmodules.evaluation import evaluate_command as command
from sslmodules.evaluation import measures
from sslmodules.evaluation.probe import probe
from sslmodules.views.corruptions import CORRUPTIONS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A SimCLR after one step."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trainer = runs.trainer(folder, max_steps=1, max_epochs=1)
    trainer.fit(SimCLR("conv4", encoder_args={"widths": [4, 8]}, warmup_epochs=0), runs.loader(8))
    trainer.save_checkpoint(folder / "simclr.ckpt")
    return str(folder / "simclr.ckpt")


def labeled(train=None, val=None):
    val = runs.images(8, seed=1) if val is None else val
    return LabeledDataModule(train or runs.images(16), val, batch_size=8, num_workers=0)


def results(report, name="SimCLR"):
    return report["encoders"][name]["results"]


def test_evaluate_on_digits_from_end_to_end(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["--ckpt", checkpoint, "--data", "Digits", "--transfer", "Digits", "--transfer.size", "16"]
    args += ["--corruptions", "true", "--supervised", "1", "--max_images", "100", "--out", str(out)]
    run("evaluate", args)
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert list(report["encoders"]) == ["SimCLR", "random", "supervised"]
    assert report["train_images"] == report["test_images"] == 100
    for name, entry in report["encoders"].items():
        found = entry["results"]
        assert set(found["corruptions"]) == set(CORRUPTIONS)
        assert found["clean_error"] == pytest.approx(1 - found["linear"])  # on the same images
        assert list(found["fractions"]) == ["0.1", "1.0"]  # 1 % of 100 images is fewer than one a class
        assert found["fractions"]["1.0"] == found["linear"] > 0.2
        assert list(found["stages"]) == ["0", "1"]
        assert len(found["embedding"]["points"]) == 100
        assert set(found["transfer"]) == {"linear", "knn"}
        assert ("loss" in found.get("pretext", {})) == (name == "SimCLR")
        assert all((out / file).is_file() for file in found["pictures"].values())
    assert "mCE" in printed
    assert "linear probe" in (out / "report.md").read_text()
    ElementTree.parse(out / "report.html")


def test_accuracies_are_those_of_the_probe(checkpoint, tmp_path):
    data = Digits()
    report = command.evaluate([checkpoint], data, out=str(tmp_path), max_images=100)
    loaders = measures.labeled_images(data, 100)[:2]
    expected = probe(command.Evaluation(checkpoint), *loaders, stages=2, clusters=True)
    found = results(report)
    assert (found["linear"], found["knn"], found["nmi"]) == (expected.linear, expected.knn, expected.nmi)
    assert found["stages"] == {str(n): a for n, a in expected.stages.items()}


def test_corruptions_of_some_images_stand_beside_the_clean_error_on_these(checkpoint, tmp_path, monkeypatch):
    seen = Counter()
    monkeypatch.setattr(
        command, "corruption_errors", lambda _, loader, *rest: seen.update([len(loader.dataset)]) or [0.5] * 5
    )
    report = command.evaluate([checkpoint], labeled(), out=str(tmp_path), corruptions=True, max_corrupted=3)
    assert seen == {3: 2 * len(CORRUPTIONS)}
    thirds = 3 * results(report)["clean_error"]
    assert thirds == pytest.approx(round(thirds))
    with pytest.raises(ValueError, match="other corrupted_images"):
        command.evaluate([checkpoint], labeled(), out=str(tmp_path), corruptions=True)


def test_an_interrupted_run_goes_on_and_computes_nothing_twice(checkpoint, tmp_path, monkeypatch):
    calls = Counter()
    stop_at = 5

    def counted(where, name):
        function = getattr(where, name)

        def call(*args, **kwargs):
            calls[name] += 1
            if name == "corruption_errors" and calls[name] == stop_at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    def run(out):
        return command.evaluate([checkpoint], labeled(), out=str(tmp_path / out), corruptions=True)

    whole = run("whole")
    places = {"features_of": measures, "cluster_nmi": measures}
    for name in ("features_of", "corruption_errors", "cluster_nmi", "_pictures", "_pretext"):
        where = places.get(name, command)
        monkeypatch.setattr(where, name, counted(where, name))
    with pytest.raises(KeyboardInterrupt):
        run("out")
    assert calls == {"features_of": 2, "corruption_errors": stop_at, "cluster_nmi": 1}
    resumed = run("out")
    assert calls == {
        "features_of": 4,  # of two encoders, on two sets of images
        "corruption_errors": 2 * len(CORRUPTIONS) + 1,  # the one that was interrupted begins again
        "cluster_nmi": 2,
        "_pictures": 2,
        "_pretext": 1,
    }
    assert resumed == whole
    before = dict(calls)
    assert run("out") == whole
    assert calls == before


def test_a_checkpoint_that_was_trained_on_is_measured_anew(checkpoint, tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    torch.save(saved, file)
    before = command.evaluate([str(file)], labeled(), out=str(tmp_path / "out"))["encoders"]["SimCLR"]["weights"]
    key = next(k for k in saved["state_dict"] if k.startswith("encoder") and k.endswith("weight"))
    saved["state_dict"][key] *= 2
    torch.save(saved, file)
    calls = []
    monkeypatch.setattr(measures, "cluster_nmi", lambda *a, **k: calls.append(1) or 0.5)
    report = command.evaluate([str(file)], labeled(), out=str(tmp_path / "out"))
    assert len(calls) == 1  # the encoder at random initialisation is the same
    assert list(report["encoders"]) == ["SimCLR", "random"]
    assert report["encoders"]["SimCLR"]["weights"] != before


def test_encoders_that_were_measured_before_stay_in_the_report(checkpoint, tmp_path):
    def report(*ckpt, **kwargs):
        return command.evaluate([*ckpt], labeled(), out=str(tmp_path / "out"), max_images=8, **kwargs)

    first = report(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    key = next(k for k in saved["state_dict"] if k.startswith("encoder") and k.endswith("weight"))
    saved["state_dict"][key] *= 2
    torch.save(saved, tmp_path / "other.ckpt")
    both = report(str(tmp_path / "other.ckpt"), reference="SimCLR")
    assert list(both["encoders"]) == ["SimCLR", "SimCLR 2", "random"]
    assert both["reference"] == "SimCLR 2"  # as this command calls its own
    assert both["encoders"]["SimCLR"] == first["encoders"]["SimCLR"]
    assert "| | SimCLR | SimCLR 2 | random |" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_with_a_report_of_other_images_is_refused(checkpoint, tmp_path):
    command.evaluate([checkpoint], labeled(), out=str(tmp_path))
    with pytest.raises(ValueError, match="holds a report with other images; pass another folder"):
        command.evaluate([checkpoint], labeled(runs.images(16, seed=5)), out=str(tmp_path))
    with pytest.raises(ValueError, match="holds a report with other seed"):
        command.evaluate([checkpoint], labeled(), out=str(tmp_path), seed=1)


def test_checkpoints_of_one_method_are_numbered_and_share_the_random_encoder(checkpoint, tmp_path):
    report = command.evaluate([checkpoint, checkpoint], labeled(), out=str(tmp_path))
    assert list(report["encoders"]) == ["SimCLR 1", "SimCLR 2", "random"]
    assert report["reference"] == "random"


def test_published_weights_are_fed_as_imagenet_and_stand_beside_random_initialisation(tmp_path):
    torch.manual_seed(1)
    published = timm.create_model("resnet10t", num_classes=7)
    torch.save(published.state_dict(), tmp_path / "resnet.pth")
    val = runs.images(8, seed=1)
    report = command.evaluate([str(tmp_path / "resnet.pth")], labeled(), out=str(tmp_path / "out"), encoder="resnet10t")
    assert list(report["encoders"]) == ["resnet", "random"]
    assert "pretext" not in results(report, "resnet")
    weights = report["encoders"]["resnet"]["weights"]
    (file,) = (tmp_path / "out" / "features").glob(f"{weights}-{report['settings']['images'][1]}-*.safetensors")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    with torch.no_grad():
        expected = published.eval().forward_features((val[:][0] / 255 - mean) / std).mean((2, 3))
    torch.testing.assert_close(load_file(file)["representation"], expected, rtol=1e-4, atol=1e-5)


def test_heads_for_masks_and_boxes_stand_beside_the_probes(checkpoint, tmp_path):
    pytest.importorskip("pycocotools")
    loaders = {
        axis: [batches(examples(12), 4), batches(examples(8, seed=1), 4)]
        for axis, examples in (("masks", masked), ("boxes", boxed))
    }
    data = {axis: LightningDataModule() for axis in loaders}
    for axis, (train, val) in loaders.items():
        data[axis].train_dataloader, data[axis].val_dataloader = (lambda x=train: x), (lambda x=val: x)
    data["masks"].num_classes, data["boxes"].num_classes = 2, 1

    def run(**kwargs):
        return command.evaluate(
            [checkpoint], labeled(), out=str(tmp_path / "out"), head_epochs=2, detection=DETECTOR, **data, **kwargs
        )

    report = run()
    for name in ("SimCLR", "random"):
        found = results(report, name)
        assert 0 < found["segmentation"]["values"]["mean_iou"] < found["segmentation"]["values"]["pixel_accuracy"] < 1
        assert 0 <= found["detection"]["values"]["map"] <= 1
        for axis in ("segmentation", "detection"):
            assert all((tmp_path / "out" / file).is_file() for file in found[axis]["pictures"].values())
    # The head stands on the weights of the checkpoint, and they stay.
    values = [results(report, name)["segmentation"]["values"]["loss"] for name in ("SimCLR", "random")]
    assert values[0] != values[1]
    torch.manual_seed(0)
    expected = SemanticSegmentation(checkpoint, num_classes=2)
    trainer = runs.trainer(tmp_path, max_epochs=2, check_val_every_n_epoch=2)
    trainer.fit(expected, *loaders["masks"])
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(values[0], rel=1e-5)
    assert "segmentation, mean IoU" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match="holds a report with other segmentation"):
        run(segmentation={"learning_rate": 0.1})


def test_two_classes_and_a_class_that_validation_lacks(checkpoint, tmp_path):
    val = Subset(runs.images(8, classes=2, seed=1), [0, 2, 4])
    data = labeled(runs.images(16, classes=2), val)
    report = command.evaluate([checkpoint], data, out=str(tmp_path))
    assert report["classes"] == ["0", "1"]
    expected = probe(command.Evaluation(checkpoint), *measures.labeled_images(data, 100)[:2])
    assert (results(report)["linear"], results(report)["knn"]) == (expected.linear, expected.knn)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: UnlabeledDataModule(runs.images(8), batch_size=4, num_workers=0), "no labeled training images"),
        (lambda: LabeledDataModule(runs.images(8), batch_size=4, num_workers=0), "no labeled validation images"),
        (lambda: labeled(runs.images(8, classes=1)), "all training images are of one class"),
        (lambda: labeled(val=Subset(runs.images(8), [])), "holds no image"),
    ],
)
def test_images_that_cannot_be_probed_are_one_sentence(data, said, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=said):
        command.evaluate([checkpoint], data(), out=str(tmp_path / "out"))


def test_unknown_names_are_one_sentence(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--reference alexnet: there is no such encoder; there are SimCLR, random"):
        command.evaluate([checkpoint], labeled(), out=str(tmp_path / "out"), reference="alexnet")
    with pytest.raises(FileNotFoundError, match="no.ckpt"):
        command.evaluate(["no.ckpt"], labeled(), out=str(tmp_path / "out"))
    assert not Path(tmp_path / "out").exists()


def test_neighbors_of_the_same_class_are_marked_as_right(checkpoint, tmp_path):
    images = measures.labeled_images(labeled(), 100)
    found = measures.Measures(command.Evaluation(checkpoint), "weights", images, tmp_path, seed=0)
    tiles = found.neighbours()
    assert tiles.captions[:3] == ["held-out image", "nearest", "2. nearest"]
    train, test = (loader.dataset for loader in images[:2])
    for tile, mark in zip(tiles.images, tiles.right, strict=True):
        [label] = [int(y) for x, y in test if torch.equal(x / 255, tile[0])]
        same = [int(next(y for x, y in train if torch.equal(x / 255, each)) == label) for each in tile[1:]]
        assert mark.tolist() == [-1, *same]
