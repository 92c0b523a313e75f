"""What single moments of a sequence are worth: a linear probe of every context vector."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from sslmodules.evaluation.classifiers import accuracy, linear_classifier
from sslmodules.evaluation.features import extract


def probe_frames(
    module: LightningModule,
    train: Iterable[Any],
    test: Iterable[Any],
    read: Callable[[Tensor], Tensor] | None = None,
    every: int = 1,
    max_sequences: int = 20_000,
) -> float | None:
    """Fit logistic regression on single frames, each with its sequence's label, and measure it on those of ``test``.

    Args:
        module: any module; see ``read``.
        train: loader to fit on, of sequences of one length; see :func:`~sslmodules.evaluation.extract`.
        test: loader to measure on.
        read: what a loader yields -> frames (B, T, D); None is ``module.frames``, as :class:`~sslmodules.CPC` has it.
        every: take every so many frames of ``train``, which neighbours resemble. Of ``test`` all are taken.
        max_sequences: of either loader; more are left unread.

    Returns:
        The share of frames that are classified rightly; None where either has no labels.
    """
    frames: Callable[[Tensor], Tensor] = read or module.frames  # type: ignore[assignment]
    x, y = extract(module, train, max_sequences, frames)  # (N, T, D), (N,)
    queries, y_test = extract(module, test, max_sequences, frames)
    return frame_accuracy(x[:, ::every], y, queries, y_test) if len(y) and len(y_test) else None


def frame_accuracy(x: Tensor, y: Tensor, queries: Tensor, y_test: Tensor) -> float:
    """Share of single frames that logistic regression, fitted on others, classifies rightly.

    Args:
        x: (N, T, D) frames of sequences to fit on.
        y: (N,) classes of the sequences.
        queries: (M, T, D), or of another length.
        y_test: (M,).

    >>> x = torch.tensor([[[-1.0], [-2.0]], [[1.0], [2.0]]])
    >>> frame_accuracy(x, torch.tensor([0, 1]), torch.tensor([[[-1.0], [-1.0], [-1.0], [1.0]]]), torch.tensor([0]))
    0.75
    """
    classes = int(torch.cat([y, y_test]).max()) + 1
    scores = linear_classifier(x.flatten(0, 1), y.repeat_interleave(x.shape[1]), classes)(queries.flatten(0, 1))
    return accuracy(scores, y_test.repeat_interleave(queries.shape[1]))
