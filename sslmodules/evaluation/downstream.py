"""What evaluate trains: an encoder with all labels to compare with, and heads for masks and boxes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from sslmodules.evaluation.base import Evaluation
from sslmodules.evaluation.dense import DenseEvaluation
from sslmodules.evaluation.finetune import FineTune
from sslmodules.evaluation.measures import SHOWN, Measures
from sslmodules.storage import atomic_path
from sslmodules.tiles import Tiles

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "devices": 1}


def supervised_encoder(measures: Measures, epochs: int, file: Path, seed: int) -> FineTune:
    """An encoder like the one that is measured, trained with all labels; from a file where it is there.

    Args:
        measures: of an encoder at random initialisation, and labeled images.
        epochs: how long it is trained.
        file: where its checkpoint is, or will be.
        seed: of order, crops and classifier.
    """
    if not file.is_file():
        print(f"supervised: {epochs} epochs", flush=True)
        loader = measures.images.train
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
                pretrained=measures.module.held,
                num_classes=measures.num_classes,
                multi_label=measures.train.labels.ndim == 2,
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
        with atomic_path(file) as part:
            trainer.save_checkpoint(part)
    return FineTune.load_from_checkpoint(file, map_location="cpu", weights_only=True)


def of_places(
    kind: type[DenseEvaluation],
    module: Evaluation,
    data: LightningDataModule,
    epochs: int,
    arguments: Mapping[str, Any],
    seed: int,
) -> tuple[dict[str, float], dict[str, Tiles]]:
    """Train a head for masks or boxes on a frozen encoder, and measure it on the validation images.

    Args:
        kind: :class:`~sslmodules.SemanticSegmentation` or :class:`~sslmodules.Detection`.
        module: whose encoder it is.
        data: images with masks, or with boxes.
        epochs: how long the head is trained.
        arguments: of ``kind``.
        seed: of the head, order and crops.

    Returns:
        What ``kind`` logs of the validation, without "val/", and pictures of some validation images.

    Raises:
        ValueError: no validation images.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dense = kind(**{"pretrained": module.held, "train_encoder": False, **arguments})
        dense.encoder.load_state_dict(module.encoder.state_dict())
        trainer = Trainer(**QUIET, max_epochs=epochs, check_val_every_n_epoch=epochs, num_sanity_val_steps=0)
        trainer.fit(dense, datamodule=data)
    values = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    if dense.measure not in values:
        raise ValueError(f"{type(data).__name__} has no validation images to measure on; pass val= as well")
    images, truth = next(iter(data.val_dataloader()))
    return values, dense.pictures(images[:SHOWN], truth[:SHOWN])
