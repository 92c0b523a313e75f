"""The command ``sslmodules evaluate``: what encoders are worth by every measure that the data allow, and a report."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from sslmodules.callbacks.features import frozen
from sslmodules.evaluation.base import Evaluation
from sslmodules.evaluation.cache import in_order, weights_key
from sslmodules.evaluation.dense import DenseEvaluation
from sslmodules.evaluation.detection import Detection
from sslmodules.evaluation.downstream import QUIET, of_places, supervised_encoder
from sslmodules.evaluation.features import evenly
from sslmodules.evaluation.files import locked
from sslmodules.evaluation.measures import SHOWN, LabeledImages, Measures, image_at, labeled_images
from sslmodules.evaluation.report import RANDOM, SUPERVISED, html, markdown, plain_table, summary
from sslmodules.evaluation.results import Results
from sslmodules.evaluation.robustness import corruption_errors, error
from sslmodules.evaluation.segmentation import SemanticSegmentation
from sslmodules.hyperparameters import class_path
from sslmodules.loading import load
from sslmodules.module import SSLModule
from sslmodules.storage import atomic_path
from sslmodules.tiles import Tiles, grid
from sslmodules.views.corruptions import CORRUPTIONS

INPUTS = {"image": "images", "sound": "recordings", "video": "clips"}


def evaluate(
    ckpt: Sequence[str],
    data: LightningDataModule,
    transfer: LightningDataModule | None = None,
    masks: LightningDataModule | None = None,
    boxes: LightningDataModule | None = None,
    out: str = "evaluation",
    corruptions: bool = False,
    max_corrupted: int | None = None,
    supervised: int = 0,
    head_epochs: int = 10,
    segmentation: dict[str, Any] | None = None,
    detection: dict[str, Any] | None = None,
    reference: str | None = None,
    encoder: str | None = None,
    max_images: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure encoders by every measure that the data allow, side by side, and write a report.

    Beside each encoder stands the same at random initialisation. Measured are, on frozen features of the validation
    images: a linear probe (logistic regression), of each stage too, and with 1 % and 10 % of the labels; the 20 nearest
    neighbours; clusters; the pretext task itself; and heads for masks and boxes, where there are some. The folder
    ``out`` then holds report.html, which needs no other file, report.md, report.json and the features. Every result is
    written as soon as it is there, the same command goes on where it was interrupted, and several commands may work in
    one folder at the same time: their results stand side by side. It runs on one GPU where there are some.

    Args:
        ckpt: checkpoints of this package, or a file of published weights (see sslmodules.encoders.load_weights).
        data: labeled images to train the probes on, and to validate; such as ``--data ImageFolder --data.root photos
            --data.labels true``.
        transfer: other labeled images, for linear probe and neighbours.
        masks: images with masks, to train a linear head for segmentation on and to measure it; such as ``--masks
            MaskFolder`` with its arguments.
        boxes: the same with boxes for detection, such as ``--boxes COCOBoxes``.
        out: folder to write into, or to go on in.
        corruptions: corrupt the validation images as well, in 14 ways at 5 severities: 70 more passes over them.
        max_corrupted: of the validation images, taken evenly; None corrupts all that there are.
        supervised: train the encoder of the first checkpoint with all labels too, for so many epochs; 0 leaves it out.
        head_epochs: how long heads for masks and boxes are trained.
        segmentation: arguments of sslmodules.SemanticSegmentation, such as '{"size": 160}'; '{"train_encoder": true}'
            trains the encoder along.
        detection: arguments of sslmodules.Detection, such as '{"min_size": 64}'.
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
    images = labeled_images(data, max_images)
    moved = None if transfer is None else labeled_images(transfer, max_images)
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
    heads = {
        axis: _Heads(kind, pictured, head_epochs, arguments or {})
        for axis, kind, pictured, arguments in (
            ("segmentation", SemanticSegmentation, masks, segmentation),
            ("detection", Detection, boxes, detection),
        )
        if pictured is not None
    }
    settings |= {axis: head.described() for axis, head in heads.items()}
    report = Results(Path(out), settings)
    features = report.folder / "features"
    if supervised:
        like = next(each for each in encoders if each.ckpt is None)
        file = report.folder / f"supervised-{like.weights}-{supervised}.ckpt"
        with locked(file):
            measures = Measures(like.module, like.weights, images, features, seed)
            trained = supervised_encoder(measures, supervised, file, seed)
        encoders.append(_Encoder(SUPERVISED, trained, None, weights_key(trained)))
    named = {each.name: report.begin(each.name, each.ckpt, each.weights, each.longer_name) for each in encoders}
    with report.changing() as content:
        content |= {
            "data": type(data).__name__,
            "reference": named[reference],
            "inputs": INPUTS[encoders[0].module.input_kind],
            "train_images": len(images.train.dataset),  # type: ignore[arg-type]
            "test_images": len(images.test.dataset),  # type: ignore[arg-type]
        }
    for each in encoders:
        _measure(report, each._replace(name=named[each.name]), data, images, moved, corrupted, heads, seed)
    files = report.finish(lambda content: {"report.md": markdown(content), "report.html": html(content, report.folder)})
    print("\n" + plain_table(summary(report.content), list(report.content["encoders"])))
    print(*files, sep="\n")
    for read in (data, transfer):
        if read is not None:
            read.teardown("validate")  # say which files could not be read
    return report.content


class _Encoder(NamedTuple):
    """An encoder, its name in the report, the checkpoint where there is one, and the key of its weights.

    The longer name is for a report in which another encoder has this one.
    """

    name: str
    module: Evaluation
    ckpt: str | None
    weights: str
    longer_name: str | None = None


class _Heads(NamedTuple):
    """What is trained on frozen encoders for masks or boxes."""

    kind: type[DenseEvaluation]
    data: LightningDataModule
    epochs: int
    arguments: Mapping[str, Any]

    def described(self) -> str:
        """All that the result depends on besides the encoder, for the report."""
        data = f"{type(self.data).__name__} {dict(self.data.hparams)}"
        return f"{data}, {self.epochs} epochs, {dict(self.arguments)}"


def _measure(
    report: Results,
    each: _Encoder,
    data: LightningDataModule,
    images: LabeledImages,
    moved: LabeledImages | None,
    corrupted: DataLoader | None,
    heads: Mapping[str, _Heads],
    seed: int,
) -> None:
    """Everything of one encoder that is not in the report yet."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, features = each.module.to(device), report.folder / "features"
    probes = Measures(module, each.weights, images, features, seed)
    if "classes" not in report.content:
        names = list(getattr(data, "classes", None) or []) or [str(i) for i in range(probes.num_classes)]
        with report.changing() as content:
            content["classes"] = names
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
        other = Measures(module, each.weights, moved, features, seed, by_stage=False)
        report.measure(each.name, other.linear, "transfer", "linear")
        report.measure(each.name, other.knn, "transfer", "knn")
    for axis, head in heads.items() if pictured else ():
        report.measure(each.name, lambda head=head: _of_places(each, head, report.folder, seed), axis)  # type: ignore[misc]
    method = _method(each)
    if method is not None:
        report.measure(each.name, lambda: _pretext(method, images.test), "pretext")
    if pictured:
        report.measure(each.name, lambda: _pictures(each.name, probes, method, report.folder, seed), "pictures")


def _pretext(method: SSLModule, loader: DataLoader) -> dict[str, float]:
    """Loss and metrics of the pretext task."""
    values = Trainer(**QUIET, enable_progress_bar=False).validate(method, loader, verbose=False)[0]
    return {name.removeprefix("val/"): value for name, value in values.items()}


def _pictures(name: str, probes: Measures, method: SSLModule | None, folder: Path, seed: int) -> dict[str, str]:
    """Pictures written beside the report: caption -> file."""
    neighbours = probes.neighbours()
    drawn = {} if neighbours is None else {"an image, and those nearest to it": neighbours}
    if method is not None:
        test = probes.images.test.dataset
        images = torch.stack([image_at(test, i) for i in evenly(len(test), SHOWN)])  # type: ignore[arg-type]
        with frozen(method):
            torch.manual_seed(seed)
            drawn |= method.pictures(images.to(method.device))
    return _saved(name, drawn, folder)


def _of_places(each: _Encoder, head: _Heads, folder: Path, seed: int) -> dict[str, Any]:
    """What a head for masks or boxes reaches on an encoder, and pictures of it."""
    values, drawn = of_places(head.kind, each.module, head.data, head.epochs, head.arguments, seed)
    return {"values": values, "pictures": _saved(each.name, drawn, folder)}


def _saved(name: str, drawn: Mapping[str, Tiles], folder: Path) -> dict[str, str]:
    """Write pictures beside the report: caption -> file."""
    files = {}
    for caption, tiles in drawn.items():
        files[caption] = "pictures/" + re.sub(r"\W+", "-", f"{name} {caption}") + ".png"
        (folder / "pictures").mkdir(exist_ok=True)
        with atomic_path(folder / files[caption]) as part:
            save_image(grid(tiles), part, "png")
    return files


def _encoders(ckpt: Sequence[str], encoder: str | None, seed: int) -> list[_Encoder]:
    """Those of the checkpoints, and each architecture among them at random initialisation."""
    modules = [Evaluation(path, encoder=encoder) for path in ckpt]
    kinds = [_kind(module, path) for module, path in zip(modules, ckpt, strict=True)]
    numbers: Counter[str] = Counter()
    found = []
    for module, kind, path in zip(modules, kinds, ckpt, strict=True):
        numbers[kind] += 1
        name = f"{kind} {numbers[kind]}" if kinds.count(kind) > 1 else kind
        found.append(_Encoder(name, module, path, weights_key(module)))
    untrained: dict[Any, _Encoder] = {}
    for each in found:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = Evaluation(encoder=encoder, pretrained=each.module.held)
        weights = weights_key(module)
        untrained.setdefault(weights, each._replace(module=module, ckpt=None, weights=weights))
    several = len(untrained) > 1
    names = {f"{RANDOM} {each.name}": each for each in untrained.values()}
    found += [each._replace(name=name if several else RANDOM, longer_name=name) for name, each in names.items()]
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
