"""What evaluate measures of an encoder on frozen features of labeled images."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sslmodules.callbacks.features import labeled_part
from sslmodules.datamodules.images import image_and_label
from sslmodules.evaluation.base import Evaluation
from sslmodules.evaluation.cache import cached, data_key, in_order
from sslmodules.evaluation.classifiers import accuracy, cluster_nmi, few_labels, linear_classifier
from sslmodules.evaluation.features import Features, evenly, features_of
from sslmodules.metrics import knn_scores
from sslmodules.tiles import Tiles
from sslmodules.views import to_float

STAGES = 6  # of an encoder, at most
EMBEDDED = 1000  # images in the plane
SHOWN = 6  # rows of pictures, and neighbours in each


class LabeledImages(NamedTuple):
    """Labeled images in their order, to fit on and to measure on, and a hash of either."""

    train: DataLoader
    test: DataLoader
    keys: list[str]


def labeled_images(data: LightningDataModule, max_images: int) -> LabeledImages:
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
    files: list[list[str]] = [[], []]
    if hasattr(data, "files"):
        files = [data.files("labeled") or data.files("train"), data.files("val")]
    return LabeledImages(found[0], found[1], [data_key(*pair) for pair in zip(found, files, strict=True)])


class Measures:
    """Features of one encoder on one data set, and the measures that rest on them; each when it is asked for."""

    def __init__(
        self, module: Evaluation, weights: str, images: LabeledImages, folder: Path, seed: int, by_stage: bool = True
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
        """Of the images to fit on.

        Raises:
            ValueError: no labels, or all of one class.
        """
        features = self._features(self.images.train, self.images.keys[0], "training")
        if len(features.labels.unique(dim=0)) < 2:
            raise ValueError("all training images are of one class, and a probe needs two; pass images of others too")
        return features

    @cached_property
    def test(self) -> Features:
        """Of the images to measure on."""
        return self._features(self.images.test, self.images.keys[1], "validation")

    @cached_property
    def num_classes(self) -> int:
        """Number of classes that occur, or may by their numbers."""
        train, test = self.train.labels, self.test.labels
        return train.shape[1] if train.ndim == 2 else int(max(train.max(), test.max())) + 1

    @cached_property
    def classify(self) -> Callable[[Tensor], Tensor]:
        """The linear probe: features (B, D) -> probabilities (B, C)."""
        return linear_classifier(self.train.representation, self.train.labels, self.num_classes)

    def linear(self) -> float:
        """Accuracy of the linear probe."""
        return accuracy(self.classify(self.test.representation), self.test.labels)

    def knn(self) -> float:
        """Accuracy of the votes of the nearest neighbours."""
        train, test = self.train, self.test
        return accuracy(
            knn_scores(test.representation, train.representation, train.labels, self.num_classes), test.labels
        )

    def nmi(self) -> float:
        """What clusters tell of the classes."""
        return cluster_nmi(self.test.representation, self.test.labels, seed=self.seed)

    def stages(self) -> dict[str, float]:
        """Accuracy of a linear probe of each stage, by its number."""
        return {
            str(number): self._linear(stage, self.test.stages[number]) for number, stage in self.train.stages.items()
        }

    def fractions(self) -> dict[str, float]:
        """Accuracy of a linear probe of few labels, by their share; nothing where images have several."""
        if self.train.labels.ndim == 2:  # no class to take a share of
            return {}
        x, x_test = self.train.representation, self.test.representation
        shares = sorted(few_labels(self.train.labels, self.seed).items())
        return {str(share): self._linear(x, x_test, kept) for share, kept in shares} | {"1.0": self.linear()}

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

    def neighbours(self) -> Tiles | None:
        """Test images, each with the training images nearest to it; those of its class are marked as right.

        None where some images have no label, so that features and images have other places.
        """
        train, test = (loader.dataset for loader in self.images[:2])
        if len(self.train.labels) != len(train) or len(self.test.labels) != len(test):  # type: ignore[arg-type]
            return None
        queries = evenly(len(test), SHOWN)  # type: ignore[arg-type]
        q, bank = (F.normalize(x, dim=1) for x in (self.test.representation[queries], self.train.representation))
        nearest = (q @ bank.T).topk(min(SHOWN, len(bank)), 1).indices  # (rows, neighbors)
        rows = [
            torch.stack([image_at(test, i), *(image_at(train, n) for n in row)])
            for i, row in zip(queries, nearest.tolist(), strict=True)
        ]
        captions = ["held-out image", "nearest", *(f"{n}. nearest" for n in range(2, nearest.shape[1] + 1))]
        right = None
        if self.train.labels.ndim == 1:
            same = self.train.labels[nearest] == self.test.labels[queries][:, None]
            right = F.pad(same.int(), (1, 0), value=-1)
        return Tiles(torch.stack(rows), captions, right)


def image_at(dataset: Any, place: int) -> Tensor:
    """An image (C, H, W) in [0, 1]."""
    return to_float(image_and_label(dataset[place])[0]).clamp(0, 1)
