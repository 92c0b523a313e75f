"""What segmentation and detection share: whole images of any size, and an encoder that is frozen or trained along."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sslmodules.evaluation.base import Evaluation


class DenseEvaluation(Evaluation):
    """An evaluation that says something of places in images, which come whole and in any size.

    Args:
        ckpt: a checkpoint of this package, or published weights beside the name of their ``encoder``.
        train_encoder: whether the encoder is trained along; else it stays as it was to the bit, batch norms' statistics
            included.
        layer_decay: rate of each of the encoder's blocks as a multiple of that of the next; 1 has one rate for all.
        kwargs: of :class:`~sslmodules.evaluation.base.Evaluation`.
    """

    predicts_on = "full size"

    def __init__(self, ckpt: str | None, *, train_encoder: bool, layer_decay: float, **kwargs: Any) -> None:
        super().__init__(ckpt, **kwargs)
        self.method.size = None  # it would cut the centre out of images
        self.input_format = None  # they come in any size
        self.train_encoder = train_encoder
        self.layer_decay = layer_decay
        self.encoder.requires_grad_(train_encoder)
        self.behind.requires_grad_(False)  # maps do not pass through it
        if getattr(self.encoder, "mask_token", None) is not None:
            self.encoder.mask_token.requires_grad_(False)  # no image has one

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """The encoder, where it is not trained."""
        return [] if self.train_encoder else [self.encoder]

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of which the sides of what the encoder eats are multiples; (1, 1) without patches."""
        return getattr(getattr(self.encoder, "patch_embed", None), "patch_size", (1, 1))

    def classify(self, pictures: Any, k: int = 5, batch_size: int = 64) -> Any:
        """Refuse: an image as a whole has no class here."""
        raise NotImplementedError(
            f"{type(self).__name__} says something of places in an image and not of the whole; sslmodules predict "
            "writes it as masks or boxes"
        )

    def report(self, stage: str, values: Any) -> None:
        """Log what the metric has come to."""
        raise NotImplementedError(f"{type(self).__name__} does not log what it measured: write report(stage, values)")

    def metric(self, stage: str) -> Any:
        """What measures in a stage, "val" or "test"."""
        return (self.val_metrics if stage == "val" else self.test_metrics)[0]

    def on_validation_epoch_end(self) -> None:
        """Log what the metric has come to."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log what the metric has come to."""
        self._report("test")

    def _report(self, stage: str) -> None:
        metric = self.metric(stage)
        if metric.update_called:
            self.report(stage, metric.compute())
            metric.reset()

    def empty(self) -> Tensor:
        """What the encoder eats of an empty image, to see the shapes of its maps."""
        side = math.lcm(64, *self.patch)
        return self.preprocess(torch.zeros(1, self.in_channels, side, side))

    def _note_format(self, batch: Any) -> None:
        """Note nothing: pictures of training are filled up to the largest of their batch."""
