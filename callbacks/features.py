"""Where probes get features and labels from, for our methods and for any other LightningModule."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from sslmodules.batch import inputs_of

Reads = Literal["features", "projections"] | int


class Labeled(NamedTuple):
    """Detached features (B, D) in fp32 and their labels (B,); a label below 0 means that there is none."""

    features: Tensor
    labels: Tensor


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Forward passes that leave no trace: eval mode, no gradient, no random number consumed, every flag restored."""
    flags = [(m, m.training) for m in module.modules()]
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        module.eval()
        try:
            yield
        finally:
            for m, training in flags:
                m.training = training


def labeled_part(batch: Any, several: bool = False) -> tuple[Any, Tensor] | None:
    """Images of a batch that have labels, and the labels (B,): those that ride along first; None without labels.

    With ``several``, labels (B, C) are labels as well.
    """
    if isinstance(batch, Mapping) and "labeled_image" in batch:
        images, labels = batch["labeled_image"], batch["labeled_label"]
    elif isinstance(batch, Mapping):
        images, labels = inputs_of(batch), batch.get("label")
    elif isinstance(batch, Sequence) and len(batch) == 2:
        images, labels = batch
    else:
        return None
    return (images, labels) if isinstance(labels, Tensor) and labels.ndim in (1, 1 + several) else None


def labeled_features(
    trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, reads: Reads = "features"
) -> Labeled | None:
    """Features of the images that have labels; None where the batch has none.

    Labeled images that ride along (``"labeled_image"``) come first; else the features that the step has computed; else
    the module is run on the batch's images. What had to be computed is kept in ``outputs`` for the next callback.

    Raises:
        ValueError: the module gives no matrix of features.
    """
    part = labeled_part(batch)
    if part is None:
        return None
    images, labels = part
    riding = isinstance(batch, Mapping) and "labeled_image" in batch
    cache = f"_{'riding_' * riding}{reads}" if riding or isinstance(reads, int) else reads
    known = outputs.get(cache) if isinstance(outputs, Mapping) else None
    if not isinstance(known, Tensor):
        with frozen(module), trainer.precision_plugin.forward_context():
            known = module.features(images, [reads])[0].mean((2, 3)) if isinstance(reads, int) else module(images)  # type: ignore[operator]
            if reads == "projections":
                known = module.project(known)  # type: ignore[operator]
        if not isinstance(known, Tensor) or known.ndim != 2 or len(known) != len(labels):
            got = tuple(known.shape) if isinstance(known, Tensor) else type(known).__name__
            raise ValueError(
                f"{type(module).__name__}.forward gave {got} for {len(labels)} images; a probe needs features (B, D)"
            )
        if isinstance(outputs, dict):
            outputs[cache] = known
    if len(known) != len(labels):
        raise ValueError(f"the step gave features of {len(known)} images for {len(labels)} labels; give one a label")
    return Labeled(known.detach().float(), labels)


def number_of_classes(trainer: Trainer, given: int | None, who: str) -> int:
    """Resolve the number of classes: as given, else what the DataModule says.

    Raises:
        ValueError: neither.
    """
    classes = known_classes(trainer, given)
    if classes is None:
        raise ValueError(f"{who} does not know the number of classes and the DataModule has no num_classes; pass it")
    return classes


def known_classes(trainer: Trainer, given: int | None) -> int | None:
    """Resolve the number of classes as :func:`number_of_classes` does; None where nobody says it."""
    classes = given if given is not None else getattr(getattr(trainer, "datamodule", None), "num_classes", None)
    return None if classes is None else int(classes)


def check_labels(labels: Tensor, classes: int | None, who: str) -> None:
    """Raise a ValueError with one clear sentence unless labels are class numbers, or -1 for none. Waits for a device.

    Args:
        labels: (B,).
        classes: number of classes, None where it is not known.
        who: reads them.

    >>> check_labels(torch.tensor([0, -1, 9]), 10, "probe")
    """
    expected = f"expected whole numbers from 0{'' if classes is None else f' to {classes - 1}'}, or -1 for none"
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{who}: the labels are {str(labels.dtype).removeprefix('torch.')}, {expected}")
    if not len(labels):
        return
    low, high = (int(x) for x in labels.aminmax())
    if low < -1 or high >= (classes or torch.inf):
        advice = "" if low < -1 else "; pass the right num_classes"
        raise ValueError(f"{who}: a label is {low if low < -1 else high}, {expected}{advice}")
