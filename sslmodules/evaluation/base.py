"""What the supervised evaluations share: a pretrained encoder, labels, and classifiers that validation images judge."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from sslmodules.batch import unpack
from sslmodules.callbacks.features import frozen, number_of_classes
from sslmodules.distillation.base import SelfDistillation
from sslmodules.distributed import all_reduced, world_size
from sslmodules.encoders import layers, load_weights, without_pretrained_weights
from sslmodules.evaluation.classifiers import mean_of_occurring
from sslmodules.hyperparameters import class_path, is_plain
from sslmodules.inputs import as_list, input_format, to_images
from sslmodules.loading import built, method_class, naming, own_checkpoint
from sslmodules.module import SSLModule
from sslmodules.optim import layer_scales, split_groups
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop, to_float


class ClassProbability(NamedTuple):
    """A class of an image, and how probable it is, in [0, 1]."""

    name: str
    probability: float


class Evaluation(SSLModule):
    """Classifiers on a pretrained encoder: a subclass writes :meth:`new_heads`, :meth:`scores` and its ``__init__``.

    Images are fed to the encoder as in its pretraining, in training after a random crop and flip. ``module(images)`` is
    the representation, as of any method; ``module.logits(images)`` is what the best classifier says. DINO and DINOv2
    are evaluated by their teacher. Checkpoints hold encoder and classifiers, and do without the one they came from.

    Args:
        ckpt: a checkpoint of this package; or of published weights (see :func:`~sslmodules.encoders.load_weights`), for
            which ``encoder`` names the architecture, and whose images are normalised as ImageNet.
        encoder: a name for :func:`~sslmodules.encoders.create_encoder` or a module, where there is no ``ckpt``; or the
            one that the ``ckpt`` was saved without.
        encoder_args: further arguments of a named encoder, such as ``{"drop_path_rate": 0.1}``; beside a ``ckpt`` they
            come on top of those of its encoder.
        num_classes: C; None takes ``num_classes`` of the DataModule.
        class_names: names of the classes, for what is predicted; None takes ``classes`` of the DataModule.
        multi_label: labels are (B, C) of 0 and 1 (binary cross-entropy, mean average precision), and not (B,) numbers
            of classes (cross-entropy, accuracy), or -1 of an image without one, which does not count.
        min_scale: smallest share of an image's area that the random crop of training covers.
        in_channels: channels of the images. A checkpoint of this package tells its own, as also mean and std.
        size: side of what the encoder sees, in pixels; None is that of the checkpoint, or of the images.
        mean: per-channel mean to subtract, in units of [0, 1].
        std: per-channel standard deviation to divide by.
        undo_normalization: ``(mean, std)`` of a normalisation that the loader has already applied; it is undone first.
        pretrained: what a ``ckpt`` held; only checkpoints of this class fill it in.
        kwargs: of :class:`~sslmodules.SSLModule`: optimizer, schedule and their numbers.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: no encoder, labels that are missing or do not fit, or when the run begins a number of classes that
            nobody knows.
    """

    shows_truth = True  # in pictures, beside what is found
    layer_decay: float = 1.0  # rate of each of the encoder's blocks as a multiple of that of the next
    behind: nn.ModuleDict  # what stands between encoder and representation: the context network of CPC
    best: Tensor  # number of the classifier that did best on the latest validation

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        encoder: str | nn.Module | None = None,
        encoder_args: dict[str, Any] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        multi_label: bool = False,
        min_scale: float = 0.08,
        in_channels: int = 3,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        undo_normalization: tuple[list[float], list[float]] | None = None,
        pretrained: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        plain = {"in_channels": in_channels, "size": size, "mean": mean, "std": std}
        method, held = _pretrained(ckpt, pretrained, encoder, encoder_args, plain)
        size = method.size if size is None else size
        # The base reads the arguments; what it is given in the encoder's place makes way for that of the method.
        super().__init__(
            nn.Identity(),
            in_channels=method.in_channels,
            size=size,
            mean=method.mean,
            std=method.std,
            undo_normalization=undo_normalization,
            **kwargs,
        )
        self.encoder = method.teacher_encoder if isinstance(method, SelfDistillation) else method.encoder
        parts = method.encoding_parts
        self.behind = nn.ModuleDict({name: part for name, part in parts.items() if name != "encoder"})
        for name, _ in list(method.named_children()):
            if name not in parts:
                delattr(method, name)  # heads, decoders, teachers: they serve the pretext task alone
        method.encoder, method.size, method.undo_normalization = self.encoder, size, None
        self._method = (method,)  # in a tuple, so that its encoder counts once
        self.held = held  # class and arguments of the method, as plain data
        self.input_kind, self.input_format = method.input_kind, method.input_format
        self.feature_dim = method.feature_dim
        if class_names is not None and num_classes not in (None, len(class_names)):
            raise ValueError(f"num_classes is {num_classes}, but class_names are {len(class_names)}; name each class")
        self.num_classes = num_classes if class_names is None else len(class_names)
        self.class_names = None if class_names is None else list(class_names)
        self.multi_label = multi_label
        self.view = RandomResizedCrop(size, (min_scale, 1.0), flip=0.5) if self.input_kind == "image" else None
        self.heads, self.val_metrics, self.test_metrics = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.register_buffer("best", torch.tensor(0))

    # --- what an evaluation writes ----------------------------------------------------------------------------------

    def new_heads(self, num_classes: int) -> Iterable[nn.Module]:
        """Build the classifiers, for as soon as the number of classes is known."""
        raise NotImplementedError(f"{type(self).__name__} has no classifier: write new_heads(num_classes)")

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, R, C) of the R classifiers, of what the encoder eats."""
        raise NotImplementedError(f"{type(self).__name__} does not classify: write scores(x)")

    def mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix what the encoder eats, and the targets (B, C), of a training batch; here they stay as they are."""
        return x, targets

    @property
    def frozen_parts(self) -> Sequence[nn.Module]:
        """Parts that stay in eval mode: neither dropout nor batch norms' statistics move in them."""
        return []

    def build(self) -> None:
        """Build classifiers and metrics if the number of classes is known; the end of a subclass's ``__init__``."""
        if self.num_classes is not None:
            self.heads.extend(self.new_heads(self.num_classes))
            for metrics in (self.val_metrics, self.test_metrics):
                metrics.extend(self._new_metric(self.num_classes) for _ in self.heads)

    # --- how the encoder is fed and read: as by the method that trained it -------------------------------------------

    @property
    def method(self) -> SSLModule:
        """The method that trained the encoder, stripped of all else."""
        return self._method[0]

    def preprocess(self, images: Tensor) -> Tensor:
        """Make what the encoder eats of what a loader yields, as the method that trained it does."""
        return self.method.preprocess(self._undo(images))

    def encode(self, x: Tensor) -> Tensor:
        """Representation (B, D) of what :meth:`preprocess` gives, as of the method that trained the encoder."""
        return self.method.encode(x)

    @property
    def encoding_parts(self) -> dict[str, nn.Module]:
        """The encoder, and what stands between it and the representation."""
        return super().encoding_parts | ({"behind": self.behind} if self.behind else {})

    def encode_map(self, x: Tensor) -> Tensor:
        """Last map (B, D, H, W) of what :meth:`preprocess` gives."""
        return self.method.encode_map(x)

    def encode_stages(self, x: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """Maps (B, C, H, W) of chosen stages, of what :meth:`preprocess` gives."""
        return self.method.encode_stages(x, stages)

    def augment(self, images: Tensor) -> Tensor:
        """Crop images and mirror some, in [0, 1]; sound and video stay as they are."""
        return images if self.view is None else self.view(images, self.generator)

    def make_views(self, images: Tensor) -> list[Tensor]:
        """One view of each image: augmented, as the encoder eats it."""
        return [self.method.preprocess(self.augment(images))]

    def logits(self, images: Tensor) -> Tensor:
        """What the best classifier says of images as a loader yields them, (B, C)."""
        return self.scores(self.preprocess(images)).index_select(1, self.best.view(1))[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) of logits (B, C); they add up to 1, unless an image may have several classes."""
        return logits.float().sigmoid() if self.multi_label else logits.float().softmax(1)

    def classify(self, pictures: Any, k: int = 5, batch_size: int = 64) -> list[list[ClassProbability]]:
        """Return the most probable classes of pictures, in eval mode; the module stays as it was.

        Args:
            pictures: files, PIL images, arrays or tensors, one or several; see :func:`~sslmodules.inputs.to_images`.
            k: how many classes, at most as many as there are.
            batch_size: how many pictures are read and classified at a time.

        Returns:
            For each picture ``(name, probability)`` of its classes, the most probable first.

        Raises:
            ValueError: no picture, or one that cannot be read or does not fit.

        >>> from sslmodules import LinearProbe
        >>> probe = LinearProbe(encoder="conv4", class_names=["cat", "dog"])
        >>> [best] = probe.classify(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), k=1)
        >>> best[0].name in ("cat", "dog"), 0.5 <= best[0].probability <= 1
        (True, True)
        """
        items = as_list(self, pictures)
        with frozen(self):
            batches = (to_images(self, items[i : i + batch_size]) for i in range(0, len(items), batch_size))
            found = torch.cat([self.probabilities(self.logits(images)) for images in batches])
        best, names = found.topk(min(k, found.shape[1]), 1), self.names()
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[ClassProbability(names[n], p) for n, p in zip(*pair, strict=True)] for pair in pairs]

    def names(self) -> list[str]:
        """Names of the classes; their numbers where nobody has named them."""
        return self.class_names or [str(number) for number in range(self.num_classes or 0)]

    # --- steps ------------------------------------------------------------------------------------------------------

    def targets(self, labels: Tensor) -> Tensor:
        """Probabilities (B, C) that labels stand for; of images without a label they are 0."""
        if self.multi_label:
            return labels.float()
        assert self.num_classes is not None
        return F.one_hot(labels.clamp_min(0), self.num_classes) * (labels >= 0)[:, None].float()

    def loss(self, views: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Sum of the classifiers' losses, each of which moves that classifier alone.

        Args:
            views: what the encoder eats, and the targets (B, C).

        Returns:
            ``"loss"``; ``"losses"`` (R,) and ``"logits"`` (B, R, C), detached.
        """
        x, targets = views
        logits = self.scores(x)
        losses = classification_loss(logits, targets, self.multi_label)
        return {"loss": losses.sum(), "losses": losses.detach(), "logits": logits.detach()}

    def _step(self, batch: Any, stage: str, count: int | str) -> dict[str, Any]:
        images, labels = _images_and_labels(batch)
        self._check_whole(batch, stage)
        targets, train = self.targets(labels), stage == "train"
        with self._keyed_randomness(count):
            out = self.loss(self.mix(self._views(images)[0], targets) if train else (self.preprocess(images), targets))
        shown = out["losses"].index_select(0, self.best.view(1))[0]  # the loss itself is of all, and one may diverge
        self.log(f"{stage}/loss", shown, prog_bar=train, sync_dist=not train, batch_size=len(images))
        if not train:
            metrics = self.val_metrics if stage == "val" else self.test_metrics
            for metric, logits in zip(metrics, out["logits"].unbind(1), strict=True):
                metric.update(logits.float().nan_to_num(), labels.long())  # type: ignore[operator]
        return {**out, "labels": labels}

    def _evaluation_step(self, batch: Any, stage: str, batch_idx: int, dataloader_idx: int) -> dict[str, Any]:
        return self._step(batch, stage, f"{stage} {dataloader_idx} {batch_idx}")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """``"features"`` (B, D) of a batch, its ``"labels"`` or None, ``"logits"`` and ``"probabilities"`` (B, C)."""
        out = super().predict_step(batch, batch_idx, dataloader_idx)
        logits = self.logits(unpack(batch).images)  # type: ignore[arg-type]
        return {**out, "logits": logits, "probabilities": self.probabilities(logits)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups by layer-wise rate: 1 for the final norm and what stands on the encoder."""
        scales = {} if self.layer_decay == 1 else layer_scales(layers(self.encoder), self.layer_decay)
        return split_groups(super().parameter_groups(), lr_scale=lambda p: scales.get(id(p), 1.0))

    def pictures(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tiles]:
        """Show images, or the first frames of clips, with the class that is found in each and how probable it is.

        With labels right and wrong are marked, and the true class is told where another was found.
        """
        if self.input_kind == "sound":
            return {}
        probabilities, names = self.probabilities(self.logits(images)), self.names()
        best = F.one_hot(probabilities.argmax(1), probabilities.shape[1]) > 0
        found = probabilities > 0.5 if self.multi_label else best
        captions = [
            ", ".join(f"{names[i]} {row[i]:.0%}" for i in chosen.nonzero().flatten().tolist()) or "none"
            for row, chosen in zip(probabilities.tolist(), found, strict=True)
        ]
        right = None
        if labels is not None:
            truth = self.targets(labels) > 0.5  # (B, C)
            known = truth.any(1) | (labels.ndim == 2)
            right = torch.where(known, (truth == found).all(1).int(), -1)
            told = [", ".join(names[i] for i in row.nonzero().flatten().tolist()) or "none" for row in truth]
            captions = [
                f"{caption}, is {name}" if mark == 0 else caption
                for caption, name, mark in zip(captions, told, right.tolist(), strict=True)
            ]
            right = right[None]
        shown = to_float(self._undo(images))
        return {"classes": Tiles((shown[:, 0] if shown.ndim == 5 else shown)[None], captions, right)}

    # --- measuring --------------------------------------------------------------------------------------------------

    @property
    def measure(self) -> str:
        """What is measured: ``"accuracy"``, or ``"mean_average_precision"``, in [0, 1] both."""
        return "mean_average_precision" if self.multi_label else "accuracy"

    def _new_metric(self, num_classes: int) -> Metric:
        if self.multi_label:
            return MultilabelAveragePrecision(num_classes, average="none", validate_args=False)
        return MulticlassAccuracy(num_classes, average="micro", ignore_index=-1, validate_args=False)

    def on_validation_epoch_end(self) -> None:
        """Find the classifier that does best, and log how well."""
        values = measured(self.val_metrics)
        if values is not None:
            self.best.copy_(values.argmax())
            self.log(f"val/{self.measure}", values.max(), prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log how well the classifier does that was best in validation."""
        values = measured(self.test_metrics)
        if values is not None:
            self.log(f"test/{self.measure}", values[self.best], prog_bar=True, sync_dist=True)

    # --- the run ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Ask the DataModule for number and names of the classes where they were left out."""
        super().setup(stage)
        if self.num_classes is None:
            self.num_classes = number_of_classes(self.trainer, None, type(self).__name__)
            self.hparams["num_classes"] = self.num_classes  # a checkpoint has no DataModule to ask
            self.build()
        classes = getattr(getattr(self.trainer, "datamodule", None), "classes", None)
        if self.class_names is None and classes and len(classes) == self.num_classes:
            self.class_names = self.hparams["class_names"] = [str(name) for name in classes]

    def on_fit_start(self) -> None:
        """Switch to training mode, which a Trainer leaves as it finds it."""
        super().on_fit_start()
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the frozen parts."""
        super().train(mode)
        for part in self.frozen_parts:
            part.eval()
        return self

    def check_batch(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where images or labels do not fit."""
        self.check_images(_images_and_labels(batch)[0])
        self.check_labels(batch)

    def check_labels(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where labels do not fit; called for every batch, on the host."""
        labels = _images_and_labels(batch)[1]
        if self.multi_label:
            if labels.ndim != 2 or self.num_classes not in (None, labels.shape[1]) or not labels.eq(labels > 0).all():
                raise ValueError(
                    f"the labels are {_described(labels)}, expected 0 and 1, (B, {self.num_classes or 'num_classes'}); "
                    "pass such labels, or multi_label=False for one class an image"
                )
        elif (
            labels.ndim != 1
            or labels.is_floating_point()
            or labels.min() < -1
            or labels.max() >= (self.num_classes or torch.inf)
        ):
            raise ValueError(
                f"the labels are {_described(labels)}, expected whole numbers (B,) below the number of classes"
                f"{'' if self.num_classes is None else f', {self.num_classes}'}, or -1 for none; pass the right "
                "num_classes, or multi_label=True where an image has several"
            )

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Look at the labels of every batch while they are on the host."""
        if self._trainer is not None and self.trainer.state.fn != "predict":
            self.check_labels(batch)
        return super()._on_before_batch_transfer(batch, dataloader_idx)

    def _check_whole(self, batch: Any, stage: str) -> None:
        """Look at the first batch of a stage, labels included."""
        if stage not in self._checked:
            self.check_batch(batch)
            self._checked.add(stage)
            if stage == "train":
                self._note_format(batch)

    def _note_format(self, batch: Any) -> None:
        self.input_format = input_format(self, _images_and_labels(batch)[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the encoder is, in the place of the file that it came from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"ckpt": None, "pretrained": self.held}


def classification_loss(logits: Tensor, targets: Tensor, multi_label: bool = False) -> Tensor:
    """Cross-entropy of R classifiers: mean over the images that have labels, under DDP over those of all ranks.

    Args:
        logits: (B, R, C).
        targets: (B, C), probabilities; rows of zeros do not count.
        multi_label: binary cross-entropy with each target in [0, 1], a mean over the classes as well.

    Returns:
        (R,).

    >>> classification_loss(torch.zeros(2, 1, 4), torch.eye(4)[:2]).exp()
    tensor([4.])
    """
    logits, targets = logits.float(), targets[:, None]  # (B, R, C), (B, 1, C)
    if multi_label:
        losses = F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none")
        return losses.mean((0, 2))
    losses = -(targets * logits.log_softmax(2)).sum((0, 2))  # (R,)
    labeled = all_reduced(targets.sum()) / world_size()
    return losses / labeled.clamp_min(torch.finfo(losses.dtype).eps)


def measured(metrics: Iterable[Any]) -> Tensor | None:
    """Values (R,) of metrics, which begin anew, NaN counting as 0; None where they have seen nothing."""
    if not all(metric.update_called for metric in metrics):
        return None
    values = [metric.compute() for metric in metrics]
    for metric in metrics:
        metric.reset()
    return torch.stack([mean_of_occurring(v) if v.ndim else v for v in values]).nan_to_num()


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    images, labels, _ = unpack(batch)
    if images is None or labels is None:
        found = "ready-made views" if images is None else "images without labels"
        raise ValueError(
            f"the batch holds {found}, expected (images, labels), or a mapping with 'image' and 'label'; pass a "
            "labeled DataModule, or for ImageFolder --data.labels true (with --data.labeled_root, take that as "
            "--data.root)"
        )
    return images, labels


def _described(labels: Tensor) -> str:
    return f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)} from {labels.min():g} to {labels.max():g}"


def _pretrained(
    ckpt: str | None,
    pretrained: dict[str, Any] | None,
    encoder: str | nn.Module | None,
    encoder_args: dict[str, Any] | None,
    plain: dict[str, Any],
) -> tuple[SSLModule, dict[str, Any]]:
    """The method that an encoder comes from; and as plain data its class and arguments, to build it again without."""
    given = {} if encoder is None else {"encoder": encoder}
    if pretrained is not None:
        with without_pretrained_weights():
            return _built(pretrained, given), pretrained
    checkpoint = None if ckpt is None else own_checkpoint(ckpt)
    if checkpoint is not None:
        arguments = {k: v for k, v in checkpoint["hyper_parameters"].items() if k not in ("optimizer", "lr_scheduler")}
        arguments["encoder_args"] = {**(arguments.get("encoder_args") or {}), **(encoder_args or {})} or None
        held = {"class_path": checkpoint["sslmodules"]["class_path"], "arguments": arguments}
        with naming(str(ckpt)), without_pretrained_weights():
            method = _built(held, given)
            method.on_load_checkpoint(checkpoint)
            method.load_state_dict(checkpoint["state_dict"])
        return method, held
    if encoder is None:
        raise ValueError(
            "there is no encoder to evaluate; pass ckpt=... (a checkpoint), or encoder=... (a name or a module)"
            if ckpt is None
            else f"{ckpt} is not an sslmodules checkpoint: the key 'sslmodules' is missing; if it holds published "
            "weights, pass encoder=... with the name of the encoder"
        )
    if ckpt is not None and plain["mean"] is None:
        plain |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    plain |= {"encoder_args": encoder_args}
    held = {"class_path": class_path(SSLModule), "arguments": plain | {k: v for k, v in given.items() if is_plain(v)}}
    method = _built(held, given)
    if ckpt is not None:
        load_weights(ckpt, method.encoder)
    return method, held


def _built(held: dict[str, Any], given: dict[str, Any]) -> SSLModule:
    return built(method_class(held["class_path"]), held["arguments"] | given)
