"""Semantic segmentation: a linear classifier of places on a frozen encoder, or fine-tuning of both."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import draw_segmentation_masks

from sslmodules.callbacks.features import frozen
from sslmodules.callbacks.predicted import class_colors
from sslmodules.datamodules.masks import IGNORED
from sslmodules.distributed import all_reduced, world_size
from sslmodules.encoders import stage_maps
from sslmodules.evaluation.dense import DenseEvaluation
from sslmodules.precision import full_precision
from sslmodules.tiles import Tiles
from sslmodules.views import resized_crop, to_float

OPACITY = 0.6  # of a class's colour on the picture


class SemanticSegmentation(DenseEvaluation):
    """Batch norm and a 1x1 convolution on the encoder's last map, enlarged to the image's size.

    Defaults: the linear protocol of ADE20K (Oquab et al. 2023, section 7.4): batch 16, AdamW. Training sees crops that
    are scaled and mirrored on the device, image and mask alike; validation and test whole images. Batches are as of
    :class:`~sslmodules.datamodules.MaskFolder`: images (B, C, H, W) and masks (B, H, W) in which 255 does not count.
    ``val/mean_iou`` is the mean over the classes that occur in truth or prediction, over all pixels of all images;
    ``val/iou/<class>`` is each of them.

    See :class:`~sslmodules.evaluation.base.Evaluation` for the arguments that are not listed here.

    Args:
        ckpt: a checkpoint of this package, or published weights beside the name of their ``encoder``.
        train_encoder: fine-tune the encoder; else it stays as it was to the bit, batch norms' statistics included.
        stages: numbers of the encoder's stages (a transformer's blocks) whose maps are read, one on top of the other,
            negative ones from the last: [-4, -3, -2, -1]. None reads the last map.
        size: side of the crops of training in pixels, a multiple of the patch; None is that of the checkpoint, and else
            that of the images.
        scale: of a crop, drawn evenly; 2 enlarges the image to twice its size. Where the crop would reach beyond the
            labeled part of the image, that is enlarged until it does not.
        layer_decay: with ``train_encoder``: each block's rate is this times that of the next.
        learning_rate: of AdamW, for a batch of 16; scaled in proportion to the global batch.
        weight_decay: of AdamW; norms and biases have none.

    Raises:
        ValueError: stages that the encoder lacks, a scale that is not ascending and above 0, or images and masks that
            do not fit.

    >>> segmentation = SemanticSegmentation(encoder="conv4", num_classes=3)
    >>> segmentation.logits(torch.zeros(2, 3, 16, 20, dtype=torch.uint8)).shape
    torch.Size([2, 3, 16, 20])
    """

    lr_batch_size = 16
    measure = "mean_iou"

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        train_encoder: bool = False,
        stages: Sequence[int] | None = None,
        size: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        layer_decay: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            ckpt,
            train_encoder=train_encoder,
            layer_decay=layer_decay,
            size=size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale is {scale}, expected 0 < least <= greatest")
        self.stages = stages
        self.scale = scale
        with frozen(self):
            self.feature_dim = self.read(self.empty()).shape[1]
        self.build()

    def new_heads(self, num_classes: int) -> list[nn.Module]:
        """One linear classifier of places, N(0, 0.01)."""
        classifier = nn.Conv2d(self.feature_dim, num_classes, 1)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
        return [nn.Sequential(nn.BatchNorm2d(self.feature_dim), classifier)]

    def read(self, x: Tensor) -> Tensor:
        """Map (B, D, h, w) of what the encoder eats: its last, or the chosen ones as large as the largest of them."""
        if self.stages is None:
            return self.encode_map(x)
        maps = stage_maps(self.encoder, x, self.stages)
        largest = max((m.shape[2:] for m in maps), key=lambda shape: shape[0])
        return torch.cat([F.interpolate(m, largest, mode="bilinear") for m in maps], 1)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, C, H, W) of what the encoder eats, (B, C', H, W) of any size: filled up to whole patches."""
        height, width = x.shape[2:]
        bottom, right = -height % self.patch[0], -width % self.patch[1]
        x = F.pad(x, (0, right, 0, bottom))  # 0 is the mean colour
        logits = self.heads[0](self.read(x)).float()
        return F.interpolate(logits, x.shape[2:], mode="bilinear")[..., :height, :width]

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images as a loader yields them."""
        return self.scores(self.preprocess(images))

    def crops(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """A random crop of each image, maybe mirrored, in [0, 1], and the same of its mask."""
        size = self._crop_shape(images)
        boxes = scaled_boxes(masks, size, self.scale, self.generator)
        flip = (torch.rand(len(images), generator=self.generator) < 0.5).to(masks.device)
        return resized_crop(images, boxes, size, flip), nearest_crop(masks, boxes, size, flip)

    def loss(self, views: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Cross-entropy, a mean over the pixels that count.

        Args:
            views: what the encoder eats (B, C', H, W), and masks (B, H, W).

        Returns:
            ``"loss"``; ``"logits"`` (B, C, H, W), detached.
        """
        x, masks = views
        logits = self.scores(x)
        return {"loss": segmentation_loss(logits, masks), "logits": logits.detach()}

    def _step(self, batch: Any, stage: str, count: int | str) -> dict[str, Any]:
        self._check_whole(batch, stage)
        images, masks = batch
        train = stage == "train"
        with self._keyed_randomness(count):
            if train:
                with torch.no_grad(), full_precision(images.device.type):
                    crops, masks = self.crops(self._undo(images), masks)
                    x = self.method.preprocess(crops)
            else:
                x = self.preprocess(images)
            out = self.loss((x, masks))
        self.log(f"{stage}/loss", out["loss"], prog_bar=train, sync_dist=not train, batch_size=len(images))
        if not train:
            self.metric(stage).update(out["logits"].argmax(1), masks)
        return out

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """``"masks"`` (B, H, W), the classes of a batch's pixels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return {"masks": self.logits(images).argmax(1)}

    # --- measuring --------------------------------------------------------------------------------------------------

    def _new_metric(self, num_classes: int) -> Metric:
        return MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)

    def report(self, stage: str, values: Tensor) -> None:
        """Log mean and single IoUs, and the accuracy of pixels, of a confusion matrix (C, C)."""
        iou = intersection_over_union(values)
        self.log(f"{stage}/mean_iou", iou.nanmean(), prog_bar=True)
        self.log(f"{stage}/pixel_accuracy", values.trace() / values.sum())
        named = zip(self.names(), iou, strict=True)
        self.log_dict({f"{stage}/iou/{name}": value for name, value in named if not value.isnan()})

    def pictures(self, images: Tensor, masks: Tensor | None = None) -> dict[str, Tiles]:
        """Show one row per image: it, the truth where there are masks (B, H, W), the prediction."""
        with frozen(self):
            predicted = self.logits(images).argmax(1)
        shown = to_float(self._undo(images))
        painted = [shown, *(self._painted(shown, m) for m in (masks, predicted) if m is not None)]
        captions = ["image", *(["truth"] if masks is not None else []), "prediction"]
        return {"segmentation": Tiles(torch.stack(painted, 1), captions)}

    def _painted(self, images: Tensor, masks: Tensor) -> Tensor:
        classes = torch.arange(self.num_classes or 0, device=masks.device)[:, None, None]
        colors = class_colors(len(classes))
        pairs = zip(images.expand(-1, 3, -1, -1), masks, strict=True)
        return torch.stack([draw_segmentation_masks(x, m == classes, OPACITY, colors) for x, m in pairs])

    # --- checks -----------------------------------------------------------------------------------------------------

    def _crop_shape(self, images: Tensor) -> tuple[int, int]:
        if self.size is not None:
            return self.size, self.size
        (height, width), (h, w) = images.shape[2:], self.patch
        return max(height // h, 1) * h, max(width // w, 1) * w

    def check_images(self, images: Tensor) -> None:
        """Refuse what the encoder cannot take; sides need not be multiples of its patch."""
        height, width = self._crop_shape(images)
        super().check_images(images[..., :height, :width])

    def check_batch(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where images or masks do not fit."""
        self.check_labels(batch)
        self.check_images(batch[0])

    def check_labels(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where masks do not fit; called for every batch, on the host."""
        if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
            raise ValueError(
                f"the batch is a {type(batch).__name__}, expected (images, masks); pass a DataModule such as MaskFolder"
            )
        images, masks = batch
        expected = (len(images), *images.shape[2:])
        if masks.shape != expected or masks.dtype != torch.int64:
            raise ValueError(
                f"the masks are {masks.dtype} {tuple(masks.shape)}, expected torch.int64 {expected} of class numbers; "
                "pass a DataModule such as MaskFolder"
            )
        classes = self.num_classes or IGNORED
        low, high = masks.where(masks != IGNORED, 0).aminmax()
        if low < 0 or high >= classes:
            number = low if low < 0 else high
            raise ValueError(
                f"a mask holds the number {number}, expected 0 to {classes - 1}, or {IGNORED} where a "
                "pixel does not count; pass the right num_classes"
            )


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy, a mean over the pixels that count; under DDP over those of all ranks.

    Args:
        logits: (B, C, H, W), fp32.
        masks: (B, H, W), classes, 255 where a pixel does not count; if none counts the loss is 0.

    >>> segmentation_loss(torch.zeros(1, 4, 1, 2), torch.tensor([[[2, 255]]])).exp()
    tensor(4.)
    """
    losses = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
    counted = all_reduced((masks != IGNORED).sum().float()) / world_size()
    return losses / counted.clamp_min(torch.finfo(losses.dtype).eps)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """IoU (C,) of each class in [0, 1], NaN of one that occurs in neither truth nor prediction.

    Args:
        confusion: (C, C), how many pixels of each class (row) were taken for which (column).

    >>> intersection_over_union(torch.tensor([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
    tensor([0.6667, 0.5000,    nan])
    """
    hit = confusion.diagonal()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


def scaled_boxes(
    masks: Tensor, size: tuple[int, int], scale: tuple[float, float], generator: Generator | None = None
) -> Tensor:
    """Boxes (B, 4), top, left, height, width, that become crops of ``size`` when an image is scaled at random.

    Args:
        masks: (B, H, W); boxes lie in what is labeled of an image, and so not in what fills it up.
        size: height and width of the crops.
        scale: least and greatest; where the box would be larger than the image, the least that fits.
        generator: on the CPU.

    >>> scaled_boxes(torch.zeros(1, 8, 12, dtype=torch.long), size=(8, 12), scale=(0.5, 1.0))
    tensor([[ 0,  0,  8, 12]])
    """
    height, width = (_labeled_length(masks, across) for across in (2, 1))  # (B,)
    drawn = torch.rand(3, len(masks), generator=generator).to(masks.device)
    factor = scale[0] + (scale[1] - scale[0]) * drawn[0]
    factor = factor.maximum(size[0] / height).maximum(size[1] / width)
    h = (size[0] / factor).round().clamp_min(1).minimum(height)
    w = (size[1] / factor).round().clamp_min(1).minimum(width)
    top, left = drawn[1] * (height - h + 1), drawn[2] * (width - w + 1)
    return torch.stack([top.floor().minimum(height - h), left.floor().minimum(width - w), h, w], 1).long()


def _labeled_length(masks: Tensor, across: int) -> Tensor:
    """How many rows or columns (B,) there are up to the last with a label; all where none has one."""
    labeled = (masks != IGNORED).any(across)  # (B, H) or (B, W)
    length = labeled.shape[1]
    last = (labeled * torch.arange(1, length + 1, device=masks.device)).amax(1)
    return torch.where(last > 0, last, length).float()


def nearest_crop(masks: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor) -> Tensor:
    """Cut a box out of each mask and resize it without mixing, as :func:`~sslmodules.views.resized_crop` does images.

    Args:
        masks: (B, H, W).
        boxes: (B, 4), top, left, height, width.
        size: height and width of the result.
        flip: (B,) bool, those to mirror left to right.

    Returns:
        (B, h, w).

    >>> masks, box = torch.tensor([[[1, 2, 3], [4, 5, 6]]]), torch.tensor([[0, 1, 2, 2]])
    >>> nearest_crop(masks, box, (2, 4), torch.tensor([True]))
    tensor([[[3, 3, 2, 2],
             [6, 6, 5, 5]]])
    """
    top, left, height, width = boxes[..., None].unbind(1)  # (B, 1) each
    down, right = ((torch.arange(side, device=masks.device) + 0.5) / side for side in size)  # (h,), (w,)
    right = torch.where(flip[:, None], 1 - right, right)  # (B, w)
    rows, columns = top + (down * height).long(), left + (right * width).long()  # (B, h), (B, w)
    return masks.gather(1, rows[..., None].expand(-1, -1, masks.shape[2])).gather(
        2, columns[:, None].expand(-1, size[0], -1)
    )
