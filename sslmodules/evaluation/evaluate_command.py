"""The command ``sslmodules evaluate``: what encoders are worth by every measure that the data allow, and a report."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.utils import save_image

import sslmodules.datamodules  # noqa: F401  # so that its classes are known by their names
from sslmodules.callbacks.features import frozen, labeled_part
from sslmodules.callbacks.pictures import grid
from sslmodules.datamodules.images import image_and_label
from sslmodules.datamodules.labels import balanced_indices
from sslmodules.evaluation.base import Evaluation
from sslmodules.evaluation.cache import cached, data_key, in_order, weights_key
from sslmodules.evaluation.classifiers import accuracy, cluster_nmi, linear_classifier
from sslmodules.evaluation.features import Features, evenly, features_of
from sslmodules.evaluation.finetune import FineTune
from sslmodules.evaluation.report import SUPERVISED, html, markdown, plain_table, summary
from sslmodules.evaluation.robustness import corruption_errors, error
from sslmodules.hyperparameters import class_path
from sslmodules.loading import load
from sslmodules.metrics import knn_scores
from sslmodules.module import SSLModule
from sslmodules.views import to_float
from sslmodules.views.corruptions import CORRUPTIONS

RANDOM = "random"  # initialisation
STAGES = 6  # of an encoder, at most
FRACTIONS = (0.01, 0.1, 1.0)
EMBEDDED = 1000  # images in the plane
INPUTS = {"image": "images", "sound": "recordings", "video": "clips"}
SHOWN = 6  # rows of pictures, and neighbours in each
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "devices": 1}


def evaluate(
    ckpt: Sequence[str],
    data: LightningDataModule,
    transfer: LightningDataModule | None = None,
    out: str = "evaluation",
    corruptions: bool = False,
    max_corrupted: int | None = None,
    supervised: int = 0,
    reference: str | None = None,
    encoder: str | None = None,
    max_images: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure encoders by every measure that the data allow, side by side, and write a report.

    Beside each encoder stands the same at random initialisation. Measured are, on frozen features of the validation
    images: a linear probe (logistic regression), of each stage too, and with 1 % and 10 % of the labels; the 20 nearest
    neighbours; clusters; and the pretext task itself. The folder ``out`` then holds report.html, which needs no other
    file, report.md, report.json and the features. Every result is written as soon as it is there, and the same command
    goes on where it was interrupted. It runs on a GPU where there is one.

    Args:
        ckpt: checkpoints of this package, or a file of published weights (see sslmodules.encoders.load_weights).
        data: labeled images to train the probes on, and to validate; such as ``--data ImageFolder --data.root photos
            --data.labels true``.
        transfer: other labeled images, for linear probe and neighbours.
        out: folder to write into, or to go on in.
        corruptions: corrupt the validation images as well, in 14 ways at 5 severities: 70 more passes over them.
        max_corrupted: of the validation images, taken evenly; None corrupts all that there are.
        supervised: train the encoder of the first checkpoint with all labels too, for so many epochs; 0 leaves it out.
        reference: name in the table of the encoder to which the mean corruption error is relative; by default the
            first that is at random initialisation.
        encoder: name of the encoder, where a file does not tell it (see sslmodules.encoders.create_encoder).
        max_images: to fit on, and to validate on; of more, so many are taken evenly.
        seed: of random initialisation, labels that stay, clusters and corruptions.

    Returns:
        What report.json holds.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: images without labels, of one class, or none; an unknown reference; a folder with the report of
            other images or settings.
    """
    images = _images(data, max_images)
    moved = None if transfer is None else _images(transfer, max_images)
    encoders = _encoders(ckpt, encoder, seed)
    settings: dict[str, Any] = {"seed": seed, "images": images.keys}
    if moved is not None:
        settings["transfer"] = moved.keys
    corrupted = in_order(images.test, max_corrupted) if corruptions else None
    if corrupted is not None:
        settings["corrupted_images"] = len(corrupted.dataset)  # type: ignore[arg-type]
    names = [each.name for each in encoders] + [SUPERVISED] * (supervised > 0)
    reference = reference or next(each.name for each in encoders if each.ckpt is None)
    if reference not in names:
        raise ValueError(f"--reference {reference}: there is no such encoder; there are {', '.join(names)}")
    report = _Report(Path(out), settings)
    if supervised:
        like = next(each.module for each in encoders if each.ckpt is None)
        encoders.append(_supervised(like, images, supervised, report, seed))
    report.content |= {
        "data": type(data).__name__,
        "reference": reference,
        "inputs": INPUTS[encoders[0].module.input_kind],
        "train_images": len(images.train.dataset),  # type: ignore[arg-type]
        "test_images": len(images.test.dataset),  # type: ignore[arg-type]
    }
    for each in encoders:
        _measure(report, each, data, images, moved, corrupted, seed)
    report.content["encoders"] = {name: report.content["encoders"][name] for name in names}
    report.write()
    print("\n" + plain_table(summary(report.content), names))
    for name, text in (("report.md", markdown(report.content)), ("report.html", html(report.content, report.folder))):
        (report.folder / name).write_text(text, encoding="utf-8")
        print(f"{report.folder / name}")
    return report.content


class _Encoder(NamedTuple):
    """An encoder, its name in the report, and the checkpoint where there is one."""

    name: str
    module: Evaluation
    ckpt: str | None


class _Images(NamedTuple):
    """Labeled images in their order, to fit on and to measure on, and a hash of either."""

    train: DataLoader
    test: DataLoader
    keys: list[str]


class _Report:
    """What has been measured, on disk as soon as it is known."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.file = folder / "report.json"
        self.content: dict[str, Any] = {"settings": settings, "encoders": {}}
        if self.file.is_file():
            self.content = json.loads(self.file.read_text(encoding="utf-8"))
            saved = self.content["settings"]
            differing = [name for name in settings if saved.get(name, settings[name]) != settings[name]]
            if differing:
                raise ValueError(
                    f"--out {folder} holds a report with other {' and '.join(differing)}; pass another folder, or the "
                    "same data and settings to go on with it"
                )
            saved |= settings

    def begin(self, name: str, path: str | None, weights: str) -> None:
        """Keep what is known of an encoder, unless its weights were others."""
        entry = self.content["encoders"].get(name, {})
        if entry.get("weights") != weights:
            entry = {"weights": weights, "results": {}}
        self.content["encoders"][name] = entry | {"path": path}

    def measure(self, name: str, compute: Callable[[], Any], *axis: str) -> None:
        """Compute a result that is not known yet, and write it."""
        place = self.content["encoders"][name]["results"]
        for key in axis[:-1]:
            place = place.setdefault(key, {})
        if axis[-1] not in place:
            print(f"{name}: {' '.join(axis)}", flush=True)
            place[axis[-1]] = compute()
            self.write()

    def write(self) -> None:
        """Write everything, in one go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(".part")
        unfinished.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        unfinished.replace(self.file)


class _Probes:
    """Features of one encoder on one data set, and the measures that rest on them; each when it is asked for."""

    def __init__(
        self, module: Evaluation, weights: str, images: _Images, folder: Path, seed: int, by_stage: bool = True
    ) -> None:
        self.module, self.weights, self.images, self.folder, self.seed = module, weights, images, folder, seed
        self.most_stages = STAGES if by_stage and module.input_kind == "image" else 0

    def _features(self, loader: DataLoader, key: str, what: str) -> Features:
        path = self.folder / f"{self.weights}-{key}-{self.most_stages}.safetensors"
        features = cached(path, lambda: features_of(self.module, loader, self.most_stages))
        if not len(features.labels):
            raise ValueError(f"no {what} image has a label; pass labeled images, or --data.labels true for ImageFolder")
        return features

    @cached_property
    def train(self) -> Features:
        features = self._features(self.images.train, self.images.keys[0], "training")
        if len(features.labels.unique(dim=0)) < 2:
            raise ValueError("all training images are of one class, and a probe needs two; pass images of others too")
        return features

    @cached_property
    def test(self) -> Features:
        return self._features(self.images.test, self.images.keys[1], "validation")

    @cached_property
    def num_classes(self) -> int:
        train, test = self.train.labels, self.test.labels
        return train.shape[1] if train.ndim == 2 else int(max(train.max(), test.max())) + 1

    @cached_property
    def classify(self) -> Callable[[Tensor], Tensor]:
        return linear_classifier(self.train.representation, self.train.labels, self.num_classes)

    def linear(self) -> float:
        return accuracy(self.classify(self.test.representation), self.test.labels)

    def knn(self) -> float:
        train, test = self.train, self.test
        return accuracy(
            knn_scores(test.representation, train.representation, train.labels, self.num_classes), test.labels
        )

    def nmi(self) -> float:
        return cluster_nmi(self.test.representation, self.test.labels, seed=self.seed)

    def stages(self) -> dict[str, float]:
        return {
            str(number): self._linear(stage, self.test.stages[number]) for number, stage in self.train.stages.items()
        }

    def fractions(self) -> dict[str, float]:
        if self.train.labels.ndim == 2:  # no class to take a share of
            return {}
        shares = {f: balanced_indices(self.train.labels, f, self.seed) for f in FRACTIONS if f < 1}
        found = {
            str(f): self._linear(self.train.representation, self.test.representation, i) for f, i in shares.items()
        }
        return found | {"1.0": self.linear()}

    def _linear(self, x: Tensor, x_test: Tensor, chosen: Tensor | slice = slice(None)) -> float:
        classify = linear_classifier(x[chosen], self.train.labels[chosen], self.num_classes)
        return accuracy(classify(x_test), self.test.labels)

    def embedding(self) -> dict[str, Any]:
        """Places in the plane of some test images, and their classes (the first of several)."""
        chosen = evenly(len(self.test.labels), EMBEDDED)
        count = len(chosen)
        x, y = F.normalize(self.test.representation[chosen], dim=1), self.test.labels[chosen]
        points = x.new_zeros(count, 2).numpy()
        if count > 2:  # of fewer there is nothing to lay out
            points = TSNE(perplexity=min(30, (count - 1) / 3), random_state=self.seed).fit_transform(x.numpy())
        return {"points": points.round(2).tolist(), "labels": (y if y.ndim == 1 else y.argmax(1)).tolist()}

    def neighbours(self) -> Tensor | None:
        """Tiles (rows, columns, C, H, W): test images, each with the training images nearest to it.

        None where some images have no label, so that features and images have other places.
        """
        train, test = (loader.dataset for loader in self.images[:2])
        if len(self.train.labels) != len(train) or len(self.test.labels) != len(test):  # type: ignore[arg-type]
            return None
        queries = evenly(len(test), SHOWN)  # type: ignore[arg-type]
        q, bank = (F.normalize(x, dim=1) for x in (self.test.representation[queries], self.train.representation))
        nearest = (q @ bank.T).topk(min(SHOWN, len(bank)), 1).indices.tolist()
        return torch.stack(
            [
                torch.stack([_image(test, i), *(_image(train, n) for n in row)])
                for i, row in zip(queries, nearest, strict=True)
            ]
        )


def _measure(
    report: _Report,
    each: _Encoder,
    data: LightningDataModule,
    images: _Images,
    moved: _Images | None,
    corrupted: DataLoader | None,
    seed: int,
) -> None:
    """Everything of one encoder that is not in the report yet."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, features = each.module.to(device), report.folder / "features"
    weights = weights_key(module)
    report.begin(each.name, each.ckpt, weights)
    probes = _Probes(module, weights, images, features, seed)
    if "classes" not in report.content:
        names = getattr(data, "classes", None) or []
        report.content["classes"] = list(names) or [str(i) for i in range(probes.num_classes)]
    for compute in (probes.linear, probes.knn, probes.nmi, probes.fractions, probes.stages, probes.embedding):
        report.measure(each.name, compute, compute.__name__)
    pictured = module.input_kind == "image"
    if corrupted is not None and pictured:
        report.measure(each.name, lambda: error(module, corrupted, probes.classify), "clean_error")
        for name in CORRUPTIONS:
            report.measure(
                each.name,
                lambda name=name: corruption_errors(module, corrupted, probes.classify, name, seed),  # type: ignore[misc]
                "corruptions",
                name,
            )
    if moved is not None:
        other = _Probes(module, weights, moved, features, seed, by_stage=False)
        report.measure(each.name, other.linear, "transfer", "linear")
        report.measure(each.name, other.knn, "transfer", "knn")
    method = _method(each)
    if method is not None:
        report.measure(each.name, lambda: _pretext(method, images.test), "pretext")
    if pictured:
        report.measure(each.name, lambda: _pictures(each.name, probes, method, report.folder, seed), "pictures")


def _pretext(method: SSLModule, loader: DataLoader) -> dict[str, float]:
    """Loss and metrics of the pretext task."""
    values = Trainer(**QUIET, enable_progress_bar=False).validate(method, loader, verbose=False)[0]
    return {name.removeprefix("val/"): value for name, value in values.items()}


def _pictures(name: str, probes: _Probes, method: SSLModule | None, folder: Path, seed: int) -> dict[str, str]:
    """Pictures written beside the report: caption -> file."""
    neighbours = probes.neighbours()
    drawn = {} if neighbours is None else {"an image, and those nearest to it": neighbours}
    if method is not None:
        test = probes.images.test.dataset
        images = torch.stack([_image(test, i) for i in evenly(len(test), SHOWN)])  # type: ignore[arg-type]
        with frozen(method):
            torch.manual_seed(seed)
            drawn |= method.pictures(images.to(method.device))
    files = {}
    for caption, tiles in drawn.items():
        files[caption] = "pictures/" + re.sub(r"\W+", "-", f"{name} {caption}") + ".png"
        (folder / "pictures").mkdir(exist_ok=True)
        save_image(grid(tiles.float().cpu()), folder / files[caption])
    return files


def _image(dataset: Any, place: int) -> Tensor:
    """An image (C, H, W) in [0, 1]."""
    return to_float(image_and_label(dataset[place])[0]).clamp(0, 1)


def _images(data: LightningDataModule, max_images: int) -> _Images:
    """The images to fit on and those to measure on, in their order."""
    data.prepare_data()
    data.setup("fit")
    if hasattr(data, "drop_last"):
        data.drop_last = False  # of so few images that there is no whole batch too
    val = data.val_dataloader()
    val = val[0] if isinstance(val, list) and val else val or None  # Lightning's [] is none
    found = []
    for loader, what in ((data.train_dataloader(), "training"), (val, "validation")):
        batch = None if loader is None else next(iter(in_order(loader, 1)), None)
        if batch is None or labeled_part(batch, several=True) is None:
            raise ValueError(
                f"{type(data).__name__} has no labeled {what} images; pass a DataModule that has, or for ImageFolder "
                "--data.labels true and, unless a part is held out, --data.val_root"
            )
        found.append(in_order(loader, max_images))
    files = [data.files(split) for split in ("train", "val")] if hasattr(data, "files") else [[], []]
    return _Images(found[0], found[1], [data_key(*pair) for pair in zip(found, files, strict=True)])


def _encoders(ckpt: Sequence[str], encoder: str | None, seed: int) -> list[_Encoder]:
    """Those of the checkpoints, and each architecture among them at random initialisation."""
    modules = [Evaluation(path, encoder=encoder) for path in ckpt]
    kinds = [_kind(module, path) for module, path in zip(modules, ckpt, strict=True)]
    numbers: Counter[str] = Counter()
    found = []
    for module, kind, path in zip(modules, kinds, ckpt, strict=True):
        numbers[kind] += 1
        found.append(_Encoder(f"{kind} {numbers[kind]}" if kinds.count(kind) > 1 else kind, module, path))
    untrained: dict[Any, _Encoder] = {}
    for each in found:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = Evaluation(encoder=encoder, pretrained=each.module.held)
        untrained.setdefault(weights_key(module), each._replace(module=module, ckpt=None))
    several = len(untrained) > 1
    found += [each._replace(name=f"{RANDOM} {each.name}" if several else RANDOM) for each in untrained.values()]
    return found


def _kind(module: Evaluation, path: str) -> str:
    """Name of the method that trained an encoder; that of the file where it is not known."""
    name = module.held["class_path"]
    return Path(path).stem if name == class_path(SSLModule) else name.rsplit(".", 1)[-1]


def _method(each: _Encoder) -> SSLModule | None:
    """The whole method of a checkpoint of this package."""
    if each.ckpt is None or each.module.held["class_path"] == class_path(SSLModule):
        return None
    return load(each.ckpt).to(each.module.device)


def _supervised(like: Evaluation, images: _Images, epochs: int, report: _Report, seed: int) -> _Encoder:
    """An encoder like another, trained with all labels; from the report's folder where it is there."""
    weights = weights_key(like)
    file = report.folder / f"supervised-{weights}-{epochs}.ckpt"
    if not file.is_file():
        print(f"supervised: {epochs} epochs", flush=True)
        probes = _Probes(like, weights, images, report.folder / "features", seed)
        loader = images.train
        batch_size = min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]
        shuffled = DataLoader(
            loader.dataset,
            batch_size,
            True,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            drop_last=True,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = FineTune(
                pretrained=like.held,
                num_classes=probes.num_classes,
                multi_label=probes.train.labels.ndim == 2,
                min_scale=0.3,
                layer_decay=1,
                mixup=0,
                cutmix=0,
                randaugment=None,
                label_smoothing=0,
                warmup_epochs=0.1 * epochs,
            )
            trainer = Trainer(**QUIET, max_epochs=epochs)
            trainer.fit(module, shuffled)
        trainer.save_checkpoint(file)
    return _Encoder(SUPERVISED, FineTune.load_from_checkpoint(file, map_location="cpu", weights_only=True), None)


def evaluate_command(args: Sequence[str]) -> None:
    """Run ``sslmodules evaluate`` with what follows these words on the command line."""
    parser = ArgumentParser(prog="sslmodules evaluate", description=(evaluate.__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt", nargs="+", type=str, required=True, help="checkpoints, or published weights")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="labeled images")
    parser.add_subclass_arguments(LightningDataModule, "transfer", required=False, help="other labeled images")
    parser.add_function_arguments(evaluate, skip={"ckpt", "data", "transfer"})
    evaluate(**parser.instantiate(parser.parse_args(list(args))).as_dict())
