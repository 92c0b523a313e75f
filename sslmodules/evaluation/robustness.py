"""What is left of a classifier under the common corruptions, fitted on clean images.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
section 4.2.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sslmodules.evaluation.classifiers import accuracy
from sslmodules.evaluation.features import extract
from sslmodules.module import SSLModule
from sslmodules.views.corruptions import CORRUPTIONS, SEVERITIES

Errors = Mapping[str, Sequence[float]]  # in [0, 1], by corruption, one a severity


def corruption_errors(
    module: SSLModule, loader: Iterable[Any], classify: Callable[[Tensor], Tensor], corruption: str, seed: int = 0
) -> list[float]:
    """Error of a classifier of clean features on corrupted images, at each severity.

    Args:
        module: any method, or an evaluation; of images.
        loader: images that are not normalised yet, and labels; see :func:`~sslmodules.evaluation.extract`.
        classify: features (B, D) -> scores (B, C).
        corruption: a name in :data:`~sslmodules.views.CORRUPTIONS`.
        seed: of the corruption: the same draws for every encoder.

    Returns:
        One a severity; see :func:`error`.
    """
    errors = []
    for severity in SEVERITIES:
        corrupt, generator = CORRUPTIONS[corruption](severity), torch.Generator().manual_seed(seed)

        def read(images: Tensor, corrupt: Any = corrupt, generator: Any = generator) -> Tensor:
            return module(corrupt(images, generator))

        errors.append(error(module, loader, classify, read))
    return errors


def error(
    module: SSLModule,
    loader: Iterable[Any],
    classify: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Error in [0, 1] of a classifier of features: 1 less the accuracy, or mean average precision of several labels.

    Args:
        module: any method, or an evaluation.
        loader: see :func:`~sslmodules.evaluation.extract`.
        classify: features (B, D) -> scores (B, C).
        read: images -> (B, D); None is the module itself.
    """
    features, labels = extract(module, loader, read=read)
    return 1 - accuracy(classify(features), labels)


def mean_corruption_error(errors: Errors, reference: Errors) -> float:
    """MCE: the error summed over severities, relative to that of a reference, as a mean over corruptions.

    Args:
        errors: by corruption, one a severity.
        reference: of the same corruptions, those of the classifier that counts as 1 (in the paper, AlexNet).

    Returns:
        The mean of the ratios, 1 for the reference itself (the paper writes 100).

    >>> mean_corruption_error({"fog": [0.1, 0.3], "snow": [0.5, 0.7]}, {"fog": [0.4, 0.4], "snow": [0.6, 0.6]})
    0.75
    """
    return fmean(_ratio(sum(errors[name]), sum(reference[name])) for name in reference)


def relative_mean_corruption_error(errors: Errors, clean: float, reference: Errors, reference_clean: float) -> float:
    """Relative mCE: as :func:`mean_corruption_error`, of what the error rises by over that on clean images.

    It is NaN where the reference does not lose by some corruption.

    >>> relative_mean_corruption_error({"fog": [0.25, 0.5]}, 0.125, {"fog": [0.5, 0.75]}, 0.125)
    0.5
    """
    return fmean(
        _ratio(sum(e - clean for e in errors[name]), sum(e - reference_clean for e in reference[name]))
        for name in reference
    )


def accuracy_by_severity(errors: Errors) -> list[float]:
    """Mean accuracy over the corruptions at each severity.

    >>> accuracy_by_severity({"fog": [0.25, 0.5], "snow": [0.75, 1.0]})
    [0.5, 0.25]
    """
    return [1 - fmean(each) for each in zip(*errors.values(), strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
