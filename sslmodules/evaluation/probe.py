"""What an encoder is worth after training: a linear probe and nearest neighbours on clean, frozen features."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor

from sslmodules.callbacks.features import frozen, labeled_part
from sslmodules.evaluation.classifiers import accuracy, cluster_nmi, linear_classifier
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


def extract(
    module: LightningModule,
    loader: Iterable[Any],
    max_images: int | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features and labels of a loader's labeled images, by ``module(images)`` in eval mode.

    Args:
        module: any module whose forward gives (B, D).
        loader: batches ``(images, labels)``, or mappings with ``"image"`` and ``"label"``, or with ``"labeled_image"``
            and ``"labeled_label"``. Images whose label is below 0 are left out. Labels may be (B, C) of 0 and 1.
        max_images: stop after so many.
        read: images -> (B, D); None is the module itself.

    Returns:
        (N, D) fp32, and (N,) or (N, C), on the CPU. N is 0 where nothing has a label.
    """
    features, labels, count = [], [], 0
    with frozen(module):
        for batch in loader:
            part = labeled_part(batch, several=True)
            if part is None:
                continue
            x, y = part
            known = (y >= 0) if y.ndim == 1 else torch.ones(len(y), dtype=torch.bool, device=y.device)
            x, y = move_data_to_device(x[known], module.device), y[known]
            if len(y):
                features.append((read or module)(x).float().cpu())
                labels.append(y.cpu())
                count += len(y)
            if max_images is not None and count >= max_images:
                break
    if not labels:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.long)
    return torch.cat(features)[:max_images], torch.cat(labels)[:max_images]


def probe(
    module: LightningModule,
    train: Iterable[Any],
    test: Iterable[Any],
    k: int = 20,
    temperature: float = 0.07,
    max_images: int = 20_000,
    stages: int = 0,
    clusters: bool = False,
) -> ProbeResult | None:
    """Fit logistic regression on the features of ``train`` and look up neighbours in it; measure both on ``test``.

    Args:
        module: any module whose forward gives (B, D).
        train: loader to fit on; see :func:`extract`.
        test: loader to measure on.
        k: neighbours that vote.
        temperature: of their votes.
        max_images: of either loader; more are left unread.
        stages: how many stages of the encoder to probe as well, on the mean of their maps, by
            :meth:`sslmodules.SSLModule.features`. Of more stages (a transformer's blocks) so many are taken, evenly,
            the last among them. The last stage of a pretext method serves its task, and the best one lies before it
            (Zhang et al. 2017, Table 2).
        clusters: measure as well how k-means clusters of the test images agree with their labels; see
            :func:`~sslmodules.evaluation.classifiers.cluster_nmi`.

    Returns:
        The result, or None where either has no labels or ``train`` has fewer than two classes.
    """
    widths: list[int] = []  # of the representation, then of each stage

    def read(images: Tensor) -> Tensor:
        parts = [module(images)]
        if stages:
            parts += [m.mean((2, 3)) for m in module.features(images)]  # type: ignore[operator]
        widths[:] = [part.shape[1] for part in parts]
        return torch.cat(parts, 1)

    x, y = extract(module, train, max_images, read)
    x_test, y_test = extract(module, test, max_images, read)
    if not len(y) or not len(y_test) or len(y.unique(dim=0)) < 2:
        return None
    parts, test_parts = x.split(widths, 1), x_test.split(widths, 1)
    count = len(widths) - 1
    most = min(stages, count)
    chosen = sorted(count - 1 - i * count // most for i in range(most))
    classes = int(max(y.max(), y_test.max())) + 1 if y.ndim == 1 else y.shape[1]
    linear, *by_stage = (
        accuracy(linear_classifier(parts[i], y, classes)(test_parts[i]), y_test) for i in (0, *(s + 1 for s in chosen))
    )
    knn = accuracy(knn_scores(test_parts[0], parts[0], y, classes, k, temperature), y_test)
    nmi = cluster_nmi(test_parts[0], y_test) if clusters else None
    return ProbeResult(linear, knn, len(y), len(y_test), dict(zip(chosen, by_stage, strict=True)), nmi)
