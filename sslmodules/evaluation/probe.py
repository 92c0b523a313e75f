"""What an encoder is worth after training: a linear probe and nearest neighbours on clean, frozen features."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch import Tensor

from sslmodules.evaluation.cache import in_order
from sslmodules.evaluation.classifiers import accuracy, cluster_nmi, few_labels, linear_classifier
from sslmodules.evaluation.features import features_of
from sslmodules.metrics import knn_scores


class ProbeResult(NamedTuple):
    """Accuracies in [0, 1] on the held-out images, and how many images they rest on.

    Of images with several labels, mean average precisions.
    """

    linear: float
    knn: float
    train_images: int
    test_images: int
    stages: dict[int, float]  # of a linear probe on each stage of the encoder that was probed, by its number
    nmi: float | None = None  # of clusters of the held-out images with their labels, where it was asked for
    few: dict[float, tuple[int, float]] = {}  # share of the labels -> images that keep theirs, and accuracy with those


def probe(
    module: LightningModule,
    train: Iterable[Any],
    test: Iterable[Any],
    k: int = 20,
    temperature: float = 0.07,
    max_images: int = 20_000,
    stages: int = 0,
    clusters: bool = False,
    few: bool = False,
    seed: int = 0,
) -> ProbeResult | None:
    """Fit logistic regression on the features of ``train`` and look up neighbours in it; measure both on ``test``.

    Args:
        module: any module whose forward gives (B, D).
        train: loader to fit on; see :func:`~sslmodules.evaluation.extract`. The images of a map-style dataset are read
            in their order and once each, whatever its sampler does, so that a result does not depend on the epoch.
        test: loader to measure on.
        k: neighbours that vote.
        temperature: of their votes.
        max_images: of either loader; of more, so many are taken evenly, or the first where the loader has no map-style
            dataset.
        stages: how many stages of the encoder to probe as well, on the mean of their maps, by
            :meth:`sslmodules.SSLModule.features`. Of more stages (a transformer's blocks) so many are taken, evenly,
            the last among them. The last stage of a pretext method serves its task, and the best one lies before it
            (Zhang et al. 2017, Table 2).
        clusters: measure as well how k-means clusters of the test images agree with their labels; see
            :func:`~sslmodules.evaluation.classifiers.cluster_nmi`.
        few: fit as well with 10 % and 1 % of the labels, where pretraining matters most; see
            :func:`~sslmodules.evaluation.classifiers.few_labels`. The images are not read again.
        seed: of the labels that are kept.

    Returns:
        The result, or None where either has no labels or ``train`` has fewer than two classes.
    """
    x, x_test = (features_of(module, _whole(loader, max_images), stages, max_images) for loader in (train, test))
    y, y_test = x.labels, x_test.labels
    if not len(y) or not len(y_test) or len(y.unique(dim=0)) < 2:
        return None
    classes = int(max(y.max(), y_test.max())) + 1 if y.ndim == 1 else y.shape[1]

    def linear(features: Tensor, queries: Tensor, kept: Tensor | slice = slice(None)) -> float:
        return accuracy(linear_classifier(features[kept], y[kept], classes)(queries), y_test)

    shares = few_labels(y, seed) if few else {}
    neighbours = knn_scores(x_test.representation, x.representation, y, classes, k, temperature)
    return ProbeResult(
        linear(x.representation, x_test.representation),
        accuracy(neighbours, y_test),
        len(y),
        len(y_test),
        {number: linear(stage, x_test.stages[number]) for number, stage in x.stages.items()},
        cluster_nmi(x_test.representation, y_test) if clusters else None,
        {f: (len(i), linear(x.representation, x_test.representation, i)) for f, i in shares.items()},
    )


def _whole(loader: Iterable[Any], max_images: int) -> Iterable[Any]:
    """All images of a loader in their order; labeled images that ride along with others take their place."""
    dataset = getattr(loader, "dataset", None)
    is_map = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return in_order(loader, max_images) if is_map else loader
