"""Detection: torchvision's Faster R-CNN on a pyramid of the encoder's maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.utils import draw_bounding_boxes

from sslmodules.batch import check_images
from sslmodules.callbacks.features import frozen
from sslmodules.datamodules.masks import filled_up
from sslmodules.encoders import stage_maps
from sslmodules.evaluation.dense import DenseEvaluation
from sslmodules.evaluation.pyramid import PyramidBackbone, SimplePyramid, StagePyramid, is_plain
from sslmodules.tiles import Tiles
from sslmodules.views import to_float

ANCHOR = 8  # side of an anchor in strides of its map: 32 px at stride 4
RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width
LEVELS = 4  # stages of a convolutional encoder that are read
SHOWN = 0.5  # least score of a detection in a picture

Target = dict[str, Tensor]


class Detection(DenseEvaluation):
    """Faster R-CNN (Ren et al. 2015) on the encoder, trained along or frozen; measured by mean average precision.

    A convolutional encoder bears a feature pyramid on its last four stages (Lin et al. 2017), a transformer the simple
    pyramid of ViTDet on its last map (Li et al. 2022), with strides of a quarter to four times its patch. Images are
    normalised as in pretraining, not as ImageNet. Defaults: SGD, batch 16, as MoCo on VOC (He et al. 2020, section
    4.2), though with the pyramid in the place of its C4 head.

    Batches are as of :class:`~sslmodules.datamodules.COCOBoxes`: B images (C, H, W), each of its own size, and B
    mappings with "boxes" (N, 4) and "labels" (N,) from 0. Objects with "iscrowd" count neither in training nor in
    ``val/map`` (COCO's, over IoUs from 0.5 to 0.95), ``val/map_50``, ``val/map_75`` and ``val/map/<class>``. Measuring
    takes pycocotools: ``pip install 'sslmodules[detection]'``.

    See :class:`~sslmodules.evaluation.base.Evaluation` for the arguments that are not listed here.

    Args:
        ckpt: a checkpoint of this package, or published weights beside the name of their ``encoder``.
        train_encoder: fine-tune the encoder; else it stays as it was to the bit, batch norms' statistics included.
        min_size: shorter side in pixels that images are resized to; of several, training draws one for each image, and
            validation takes the last.
        max_size: longest side that this may give.
        anchor_sizes: sides of the anchors in pixels of the resized image, one for each of the pyramid's maps from fine
            to coarse; None is 8 times their strides.
        width: channels of the pyramid.
        detector_args: further arguments of torchvision's ``FasterRCNN``, such as ``{"box_detections_per_img": 300}``.
        layer_decay: with ``train_encoder``: each block's rate is this times that of the next.
        learning_rate: of SGD, for a batch of 16; scaled in proportion to the global batch.
        weight_decay: of SGD; norms and biases have none.
        milestones: epochs after which the rate falls to a tenth; None is a cosine.

    Raises:
        ValueError: not one anchor size for each map, an encoder whose strides are no powers of 2, or images and boxes
            that do not fit.

    >>> detection = Detection(encoder="conv4", num_classes=2, min_size=64, width=16)
    >>> [sorted(found) for found in detection.eval().detect([torch.zeros(3, 48, 64, dtype=torch.uint8)])]
    [['boxes', 'labels', 'scores']]
    """

    default_warmup_epochs = 0.1
    lr_batch_size = 16
    measure = "map"

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        train_encoder: bool = True,
        min_size: int | list[int] = 800,
        max_size: int = 1333,
        anchor_sizes: list[int] | None = None,
        width: int = 256,
        detector_args: dict[str, Any] | None = None,
        layer_decay: float = 1.0,
        learning_rate: float = 0.02,
        weight_decay: float = 1e-4,
        milestones: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            ckpt,
            train_encoder=train_encoder,
            layer_decay=layer_decay,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            milestones=milestones,
            **kwargs,
        )
        with frozen(self):
            empty = self.empty()
            self.plain = is_plain(stage_maps(self.encoder, empty))
            maps = self.read(empty)
        self.channels = [m.shape[1] for m in maps]
        strides = [empty.shape[2] // m.shape[2] for m in maps]
        if self.plain:
            (stride,) = strides
            if stride < 4 or stride & (stride - 1):
                raise ValueError(
                    f"the encoder's last map has the stride {stride}, and torchvision's detectors take powers of 2, "
                    "here from 4 on; pass an encoder with patches of 4, 8, 16 or 32 px"
                )
            strides = [stride // 4, stride // 2, stride, 2 * stride]
        strides.append(2 * strides[-1])
        if anchor_sizes is not None and len(anchor_sizes) != len(strides):
            raise ValueError(
                f"anchor_sizes are {len(anchor_sizes)}, expected {len(strides)}, one for each map of the pyramid, of "
                f"the strides {strides}"
            )
        self.anchor_sizes = [ANCHOR * stride for stride in strides] if anchor_sizes is None else anchor_sizes
        self.min_size = min_size
        self.max_size = max_size
        self.width = width
        self.detector_args = detector_args or {}
        self.build()

    def read(self, x: Tensor) -> list[Tensor]:
        """Maps of what the encoder eats, from fine to coarse: the last four stages', or a transformer's last alone."""
        return [self.encode_map(x)] if self.plain else stage_maps(self.encoder, x)[-LEVELS:]

    def new_heads(self, num_classes: int) -> list[nn.Module]:
        """One Faster R-CNN, whose class 0 is the background. It calls the encoder, which is no part of it."""
        pyramid = (
            SimplePyramid(self.channels[-1], self.width) if self.plain else StagePyramid(self.channels, self.width)
        )
        regions = [str(level) for level in range(len(self.anchor_sizes) - 1)]
        return [
            FasterRCNN(
                PyramidBackbone(self.read, pyramid, self.width),
                num_classes + 1,
                min_size=self.min_size,
                max_size=self.max_size,
                image_mean=[0.0],  # images come to it normalised
                image_std=[1.0],
                rpn_anchor_generator=AnchorGenerator(
                    tuple((size,) for size in self.anchor_sizes), (RATIOS,) * len(self.anchor_sizes)
                ),
                box_roi_pool=MultiScaleRoIAlign(regions, output_size=7, sampling_ratio=2),
                **self.detector_args,
            )
        ]

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """SGD, momentum 0.9."""
        return SGD(groups, lr=lr, momentum=0.9, weight_decay=self.weight_decay)

    # --- steps ------------------------------------------------------------------------------------------------------

    def detect(self, images: Sequence[Tensor]) -> list[Target]:
        """What is found in images (C, H, W) as a loader yields them, in eval mode.

        Returns:
            For each "boxes" (N, 4), x0, y0, x1, y1 in pixels, "labels" (N,) from 0 and "scores" (N,), the best first.
        """
        found = self.heads[0]([self.preprocess(image[None])[0] for image in images])
        return [{**one, "labels": one["labels"] - 1} for one in found]

    def loss(self, views: tuple[Sequence[Tensor], Sequence[Target]]) -> dict[str, Any]:  # type: ignore[override]
        """The detector's losses, in training mode.

        Args:
            views: B images (C, H, W) as the encoder eats them, and B mappings of their objects.

        Returns:
            ``"loss"``, the sum of the others: ``"loss_objectness"``, ``"loss_rpn_box_reg"``, ``"loss_classifier"``,
            ``"loss_box_reg"``.
        """
        images, targets = views
        counted = [{"boxes": t["boxes"][~_crowd(t)], "labels": t["labels"][~_crowd(t)] + 1} for t in targets]
        losses = self.heads[0](list(images), counted)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def mirrored(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[list[Tensor], list[Target]]:
        """Images and their boxes, each mirrored left to right in half of the cases."""
        flips = (torch.rand(len(images), generator=self.generator) < 0.5).tolist()
        pairs = [
            mirror(*pair) if flip else pair for flip, pair in zip(flips, zip(images, targets, strict=True), strict=True)
        ]
        return [image for image, _ in pairs], [target for _, target in pairs]

    def _step(self, batch: Any, stage: str, count: int | str) -> dict[str, Any]:
        self._check_whole(batch, stage)
        images, targets = batch
        if stage != "train":
            counted = [{**target, "iscrowd": _crowd(target)} for target in targets]
            self.metric(stage).update(self.detect(images), counted)
            return {}
        with self._keyed_randomness(count):
            images, targets = self.mirrored(images, targets)
            out = self.loss(([self.preprocess(image[None])[0] for image in images], targets))
        self.log("train/loss", out["loss"], prog_bar=True, batch_size=len(images))
        self.log_dict({f"train/{name}": value for name, value in out.items() if name != "loss"}, batch_size=len(images))
        return out

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """``"boxes"``: what is found in each of a batch's images; ``"sizes"`` (B, 2), height and width of these."""
        first = batch[0]
        images = batch if isinstance(first, Tensor) and first.ndim == 3 else first  # without targets, or with
        return {"boxes": self.detect(images), "sizes": torch.tensor([image.shape[1:] for image in images])}

    # --- measuring --------------------------------------------------------------------------------------------------

    def _new_metric(self, num_classes: int) -> Metric:
        return MeanAveragePrecision(class_metrics=True)

    def report(self, stage: str, values: dict[str, Tensor]) -> None:
        """Log mean average precisions, over IoUs from 0.5 to 0.95 and at 0.5 and 0.75, and by class."""
        self.log(f"{stage}/map", values["map"], prog_bar=True)
        self.log_dict({f"{stage}/{name}": values[name] for name in ("map_50", "map_75")})
        names = self.names()
        by_class = zip(values["classes"].view(-1).tolist(), values["map_per_class"].view(-1), strict=True)
        self.log_dict({f"{stage}/map/{names[number]}": value for number, value in by_class if value >= 0})

    def pictures(  # type: ignore[override]
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tiles]:
        """Show one row per image: it, the truth where it is given, and what is found with a score of at least 0.5."""
        with frozen(self):
            found = self.detect(images)
        found = [{name: value[one["scores"] >= SHOWN] for name, value in one.items()} for one in found]
        shown = [to_float(self._undo(image[None]))[0].expand(3, -1, -1) for image in images]
        drawn = [[self._drawn(*pair) for pair in zip(shown, boxes, strict=True)] for boxes in (targets, found) if boxes]
        captions = ["image", *(["truth"] if targets else []), "found"]
        return {"detection": Tiles(torch.stack([filled_up(column, 0) for column in (shown, *drawn)], 1), captions)}

    def _drawn(self, image: Tensor, boxes: Target) -> Tensor:
        names = self.names()
        return draw_bounding_boxes(image, boxes["boxes"], [names[label] for label in boxes["labels"].tolist()], "red")

    # --- checks -----------------------------------------------------------------------------------------------------

    def check_batch(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where images or boxes do not fit."""
        self.check_labels(batch)
        for image in batch[0]:
            check_images(image[None], self.in_channels, None, None, any_range=self.undo_normalization is not None)

    def check_labels(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where boxes do not fit; called for every batch, on the host."""
        try:
            _, targets = batch
            objects = [(target["boxes"], target["labels"]) for target in targets]
        except (TypeError, ValueError, KeyError, IndexError):
            raise ValueError(
                f"the batch is a {type(batch).__name__}, expected a list of images and one of mappings with 'boxes' "
                "and 'labels'; pass a DataModule such as COCOBoxes"
            ) from None
        for boxes, labels in objects:
            if boxes.shape != (len(labels), 4) or not (boxes[:, :2] < boxes[:, 2:]).all():
                raise ValueError(
                    f"the boxes of {len(labels)} labels are {boxes.tolist()}, expected x0, y0, x1, y1 of each in "
                    "pixels, with x0 < x1 and y0 < y1; take out those without area"
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < (self.num_classes or torch.inf):
                raise ValueError(
                    f"the labels of boxes are {labels.tolist()}, expected numbers from 0 below the number of classes, "
                    f"{self.num_classes}; pass the right num_classes"
                )


def mirror(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """An image (C, H, W) mirrored left to right, and its boxes.

    >>> image, target = mirror(torch.zeros(3, 5, 10), {"boxes": torch.tensor([[0.0, 1.0, 4.0, 3.0]])})
    >>> target["boxes"]
    tensor([[ 6.,  1., 10.,  3.]])
    """
    x0, y0, x1, y1 = target["boxes"].unbind(1)
    width = image.shape[2]
    return image.flip(2), {**target, "boxes": torch.stack([width - x1, y0, width - x0, y1], 1)}


def _crowd(target: Target) -> Tensor:
    """Which objects (N,) do not count."""
    return target.get("iscrowd", torch.zeros_like(target["labels"])).bool()
