"""The contract that all methods share: batches in, views, one loss, features out."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from sslmodules.batch import InputKind, check_clips, check_images, check_sound, unpack
from sslmodules.callbacks.features import frozen
from sslmodules.callbacks.finite import FiniteLoss
from sslmodules.callbacks.held_out import HeldOutAccuracy
from sslmodules.callbacks.momentum import MomentumUpdate
from sslmodules.callbacks.queue import QueueUpdate
from sslmodules.distributed import rank, world_size
from sslmodules.encoders import (
    create_encoder,
    feature_dim,
    last_map,
    map_shape,
    pool,
    stage_maps,
    without_pretrained_weights,
)
from sslmodules.encoders.single_image import single_image_statistics
from sslmodules.hyperparameters import class_path, save_init_arguments
from sslmodules.inputs import InputFormat, as_list, input_format, to_images
from sslmodules.optim import parameter_groups, step_decay, warmup_cosine
from sslmodules.precision import full_precision, require_fp32_weights
from sslmodules.reading import misfit
from sslmodules.tiles import Tiles
from sslmodules.trainer_state import begin_resumed_run, pending_batches, repair_progress
from sslmodules.views import center_square, denormalize, normalize, to_float

# What `loss` returns besides metrics: these are handed to the callbacks and not logged as metrics.
NOT_METRICS = ("loss", "features", "projections", "keys", "labels")


class SSLModule(LightningModule):
    """A self-supervised method: subclasses write ``__init__``, :meth:`make_views` and :meth:`loss`.

    Images are everywhere what a loader yields: uint8, or float in [0, 1], (B, C, H, W). ``module(images)`` gives the
    representation, so nobody can feed the encoder what it was not trained on.

    Args:
        encoder: a name for :func:`sslmodules.encoders.create_encoder`, or any module that gives (B, D), (B, N, D) or
            (B, D, H, W).
        encoder_args: further arguments of a named encoder, such as ``{"pretrained": True}``.
        in_channels: channels of the images.
        size: side of the views in pixels; None makes them as large as the images that come in.
        mean: per-channel mean that :meth:`preprocess` subtracts, in units of [0, 1]; None does not normalise.
        std: per-channel standard deviation that it divides by.
        undo_normalization: ``(mean, std)`` of a normalisation that the loader has already applied; it is undone first.
        optimizer: Lightning's ``OptimizerCallable``, parameter groups -> optimizer; None takes the method's recipe.
        lr_scheduler: ``LRSchedulerCallable``, optimizer -> scheduler (stepped every epoch); None takes the recipe's.
        learning_rate: of the recipe, for a batch of :attr:`lr_batch_size` images over all devices and accumulated
            batches; it is scaled in proportion. With ``lr_batch_size = None`` it is taken as it is.
        weight_decay: of the recipe; norms and biases have none.
        warmup_epochs: epochs of linear warm-up in the recipe's schedule, counted in optimizer steps; None takes the
            method's :attr:`default_warmup_epochs`, or a tenth of a run that is no longer than these.
        milestones: epochs after which the recipe's rate falls to a tenth; None is a cosine.

    Raises:
        ValueError: an unknown encoder (with the nearest names), or a mean and std that do not fit the channels.

    >>> from torch.nn import functional as F
    >>> class Agree(SSLModule):  # a new method: views and a loss
    ...     def make_views(self, images):
    ...         return [self.normalize(to_float(images)), self.normalize(to_float(images).flip(-1))]
    ...     def loss(self, views):
    ...         a, b = (self.encode(v) for v in views)
    ...         return {"loss": -F.cosine_similarity(a, b).mean(), "features": a.detach()}
    >>> method = Agree("conv4")
    >>> method(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 256])
    """

    lr_batch_size: ClassVar[int | None] = 256
    default_warmup_epochs: ClassVar[float] = 0.0
    input_kind: InputKind = "image"  # that a loader yields; sound is (B, C, T) in [-1, 1], video (B, T, C, H, W)
    encoder_channels: ClassVar[int | None] = None  # that preprocess gives; None: those of the images
    reads_map: ClassVar[bool] = False  # whether the representation is the mean of the last map: of the patches' tokens
    specialised: ClassVar[bool] = False  # whether the last stage serves the pretext task more than its users: the
    # probes that end a run then look at every stage
    validation_measure: ClassVar[str | None] = None  # which metric of held-out images, lower being better, tells the
    # best epoch where there are no labels; None: none does, as losses between views fall without better features

    # What ImageFolder yields in `predict`: central squares, whole pictures near the size of these, or at full size.
    predicts_on: ClassVar[Literal["squares", "whole", "full size"]] = "squares"

    momentum: float | None = None  # of the teachers, where there are momentum_pairs; see MomentumUpdate
    momentum_rises: bool = True  # towards 1 by a cosine over the run
    input_format: InputFormat | None = None  # of the training data, from its first batch on; in checkpoints
    queue: Any  # a FeatureQueue, or None; filled by QueueUpdate
    projector: Any  # a module, or None in a method without one

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        encoder_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        undo_normalization: tuple[list[float], list[float]] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_epochs: float | None = None,
        milestones: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        save_init_arguments(self)
        if in_channels != 3 and mean is not None and len(mean) == 3:
            raise ValueError(
                f"in_channels is {in_channels} but mean and std are of 3 channels; pass mean and std of your data: "
                f"{in_channels} numbers each, or None for neither"
            )
        self.queue = None
        self.projector = None
        self.in_channels = in_channels
        self.size = size
        self.mean, self.std = _channel_stats(mean, std, in_channels)
        self.undo_normalization = _channel_stats(*undo_normalization, in_channels) if undo_normalization else None
        self.optimizer_callable = optimizer
        self.lr_scheduler_callable = lr_scheduler
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = self.default_warmup_epochs if warmup_epochs is None else warmup_epochs
        self._warmup_chosen = warmup_epochs is not None
        self.milestones = milestones
        channels = self.encoder_channels or in_channels
        if isinstance(encoder, str):
            encoder = create_encoder(encoder, channels, size, **(encoder_args or {}))
        self.encoder = encoder
        self.feature_dim = (
            map_shape(encoder, channels, size)[0] if self.reads_map else feature_dim(encoder, channels, size)
        )
        self.generator: torch.Generator | None = None  # of the current batch, for make_views
        self._seed: int | None = None
        self._checked: set[str] = set()

    # --- what a method writes ---------------------------------------------------------------------------------------

    def make_views(self, images: Tensor) -> Any:
        """Turn images into what :meth:`loss` reads, on their device, in fp32 and without gradient.

        Args:
            images: (B, C, H, W), uint8 or float in [0, 1]. All randomness comes from ``self.generator``, which is
                keyed by seed, rank and batch, so that a resumed run draws the same.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how views are made: write make_views(images)")

    def loss(self, views: Any) -> dict[str, Any]:
        """Compute the loss of one batch, deterministic apart from dropout.

        Returns:
            ``"loss"``; ``"features"``, the detached representation (B, D) or None, and ``"projections"`` (B, d), which
            the probes read; ``"keys"`` for a queue; and any scalar metric by its name.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss: write loss(views)")

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs (student, teacher) that :class:`~sslmodules.callbacks.MomentumUpdate` moves; a method adds its own."""
        return []

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """Build the method's own optimizer, for when none was given; ``lr`` is scaled to the batch later."""
        return torch.optim.AdamW(groups, lr=lr, weight_decay=self.weight_decay)

    def recipe_schedule(self, step: int, steps_per_epoch: float, total: float) -> float:
        """Give the factor on the learning rate after ``step`` of ``total`` optimizer steps."""
        warmup = int(self.warmup_epochs * steps_per_epoch)
        if self.milestones is None:
            return warmup_cosine(step, warmup, total)
        rising = step / warmup if step < warmup else 1.0
        return rising * step_decay(step, steps_per_epoch, self.milestones)

    # --- from images to features ------------------------------------------------------------------------------------

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract the module's mean and divide by its std, per channel; floats (B, C, H, W) in [0, 1]."""
        return images if self.mean is None else normalize(images, self.mean, self.std)  # type: ignore[arg-type]

    def denormalize(self, images: Tensor) -> Tensor:
        """Undo :meth:`normalize`, for the eye: (B, C, H, W) in [0, 1]."""
        return (images if self.mean is None else denormalize(images, self.mean, self.std)).clamp(0, 1)  # type: ignore[arg-type]

    def preprocess(self, images: Tensor) -> Tensor:
        """Make what the encoder eats of what a loader yields: fp32, normalised, as large as the views in training.

        With a ``size``, images of another one give their central square, resized.
        """
        images = to_float(self._undo(images))
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = center_square(images, self.size)
        return self.normalize(images)

    def encode(self, x: Tensor) -> Tensor:
        """Representation (B, D) of preprocessed images or views: the encoder's output, pooled."""
        return pool(self.encode_map(x) if self.reads_map else self.encoder(x))

    @property
    def encoding_parts(self) -> dict[str, nn.Module]:
        """The parts by name that :meth:`encode` passes through: what is left of a method when it is evaluated."""
        return {"encoder": self.encoder}

    def encode_map(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) of preprocessed images or views: the encoder's last, before it is pooled."""
        return last_map(self.encoder, x)

    def forward(self, images: Tensor) -> Tensor:
        """Representation (B, D) of images as a loader yields them."""
        return self.encode(self.preprocess(images))

    def embed(self, pictures: Any, batch_size: int = 64) -> Tensor:
        """Return features (N, D) of pictures, in eval mode and without gradient; the module stays as it was.

        Args:
            pictures: files, PIL images, arrays or tensors, one or several; see :func:`~sslmodules.inputs.to_images`.
            batch_size: how many are read and encoded at a time.

        Raises:
            ValueError: no picture, or one that cannot be read or does not fit.
        """
        items = as_list(self, pictures)
        with frozen(self):
            batches = (to_images(self, items[i : i + batch_size]) for i in range(0, len(items), batch_size))
            return torch.cat([self(images) for images in batches])

    def project(self, features: Tensor) -> Tensor:
        """Projection z of the representation h, what the loss compares; h itself in a method without projector."""
        return features if self.projector is None else self.projector(features)

    def features(self, images: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """Maps (B, C, H, W) of chosen stages of the encoder, or of all; see :func:`sslmodules.encoders.stage_maps`."""
        return self.encode_stages(self.preprocess(images), stages)

    def encode_stages(self, x: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """As :meth:`features`, of preprocessed images."""
        return stage_maps(self.encoder, x, stages)

    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show what the method sees, as tiles by name, one row per image: here it and its views.

        Views whose size differs from the image's are not shown beside it. Of sound there is nothing to see.
        """
        if self.input_kind == "sound":
            return {}
        views = self._views(images)
        images = to_float(self._undo(images))
        shown = [self.denormalize(v) for v in views]
        shown = [v for v in shown if v.shape == shown[0].shape]
        captions = [f"view {i}" for i in range(1, len(shown) + 1)]
        if images.shape == shown[0].shape:
            shown, captions = [images, *shown], ["image", *captions]
        return {"views": Tiles(torch.stack(shown, 1), captions)}

    # --- steps ------------------------------------------------------------------------------------------------------

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Have the labels of every batch checked by those who read them, while they are on the host.

        The public hook belongs to the DataModule, and Lightning warns of a module that has one as well.
        """
        if self._trainer is not None and self.trainer.state.fn in ("fit", "validate"):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, HeldOutAccuracy):
                    callback.check_batch(self.trainer, batch)
        return super()._on_before_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Views, loss, log. Returns what :meth:`loss` returned and the labels, for the callbacks."""
        # Counted over batches and not optimizer steps: two accumulated batches must not share their views.
        count = batch_idx if self._trainer is None else self.trainer.fit_loop.epoch_loop.total_batch_idx
        with single_image_statistics(self, batch):
            return self._step(batch, "train", count)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Report the pretext task on held-out images; hand the features of the images themselves to the callbacks."""
        return self._evaluation_step(batch, "val", batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As :meth:`validation_step`."""
        return self._evaluation_step(batch, "test", batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """``"features"`` (B, D) of a batch and its ``"labels"`` (B,) or None."""
        images, labels, views = unpack(batch)
        if images is None:
            raise ValueError(f"predicting needs images, the batch holds {len(views or [])} ready-made views")
        self._check_first(images, "predict")
        return {"features": self(images), "labels": labels}

    def _evaluation_step(self, batch: Any, stage: str, batch_idx: int, dataloader_idx: int) -> dict[str, Any]:
        out = self._step(batch, stage, f"{stage} {dataloader_idx} {batch_idx}")
        images = unpack(batch).images
        if images is not None:
            out["features"] = self(images)
            out["projections"] = self.project(out["features"])
        return out

    def _step(self, batch: Any, stage: str, count: int | str) -> dict[str, Any]:
        images, labels, views = unpack(batch)
        if images is not None:
            self._check_first(images, stage)
        with self._keyed_randomness(count):
            out = dict(self.loss(self._views(images) if views is None else views))  # type: ignore[arg-type]
        b = len(images if images is not None else views[0])  # type: ignore[index]
        metrics = {f"{stage}/{k}": v for k, v in out.items() if k not in NOT_METRICS}
        train = stage == "train"
        self.log(f"{stage}/loss", out["loss"], prog_bar=train, sync_dist=not train, batch_size=b)
        self.log_dict(metrics, sync_dist=not train, batch_size=b)
        out["labels"] = labels
        return out

    def _views(self, images: Tensor) -> Any:
        with torch.no_grad(), full_precision(images.device.type):
            return self.make_views(self._undo(images))

    def _undo(self, images: Tensor) -> Tensor:
        if self.undo_normalization is None or images.dtype == torch.uint8:
            return images
        frames = images.flatten(0, -4)  # of clips (B, T, C, H, W) too
        return denormalize(frames, *self.undo_normalization).clamp(0, 1).view_as(images)  # type: ignore[arg-type]

    @contextmanager
    def _keyed_randomness(self, count: int | str) -> Iterator[None]:
        """Make every draw of a step, dropout included, a function of (seed, rank, count) and of nothing else."""
        key = hashlib.blake2b(f"{self._seed} {rank()} {count}".encode(), digest_size=8).digest()
        seed = int.from_bytes(key, "little") >> 1
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            self.generator = torch.Generator().manual_seed(seed)
            try:
                yield
            finally:
                self.generator = None

    # --- checks of the first batch ----------------------------------------------------------------------------------

    def check_batch(self, batch: Any) -> None:
        """Raise a ValueError with one clear sentence where this method cannot train on such a batch.

        Called for the first batch of every stage; call it yourself to know before a run begins.
        """
        images, _, views = unpack(batch)
        if images is not None:
            self.check_images(images)
        b = len(images if images is not None else views[0]) * world_size()  # type: ignore[index]
        if self.queue is not None and len(self.queue) < b:
            raise ValueError(
                f"the queue holds {len(self.queue)} keys, fewer than a batch of {b} over all devices; pass a larger "
                "queue_size or a smaller batch"
            )

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError with one clear sentence where images do not fit; a method adds what it cannot do."""
        if self.input_kind == "sound":
            return check_sound(images, self.in_channels)
        patch = getattr(getattr(self.encoder, "patch_embed", None), "patch_size", None)
        check = check_clips if self.input_kind == "video" else check_images
        check(images, self.in_channels, patch, self.size, any_range=self.undo_normalization is not None)

    def _check_first(self, images: Tensor, stage: str) -> None:
        if stage not in self._checked:
            (self.check_batch if stage == "train" else self.check_images)(images)
            self._checked.add(stage)
            if stage == "train":
                self.input_format = input_format(self, images)

    # --- optimizer and callbacks ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Give the callbacks that the method needs, apart from those whose like the Trainer already has."""
        needed: list[Callback] = [FiniteLoss(), *([MomentumUpdate()] if self.momentum_pairs else [])]
        needed += [QueueUpdate()] if self.queue is not None else []
        present = [] if self._trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        return [c for c in needed if not any(isinstance(p, type(c)) for p in present)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer; a group's ``"lr_scale"`` multiplies its rate. See :mod:`sslmodules.optim`."""
        return parameter_groups(self)

    def configure_optimizers(self) -> Any:
        """Build the given optimizer and schedule, or the method's recipe in the place of each that was left out."""
        groups = self.parameter_groups()
        if self.optimizer_callable is not None:
            optimizer = self.optimizer_callable(groups)
        else:
            optimizer = self.recipe_optimizer(groups, self.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)  # before a scheduler notes the initial rates
        if self.lr_scheduler_callable is None:
            schedule = LambdaLR(optimizer, lambda step: self._learning_rate_factor(step))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        scheduler = self.lr_scheduler_callable(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": getattr(scheduler, "monitor", "val/loss")},
            }
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        """Set the recipe's first learning rate.

        Batch size and length of the run are known only now: asking for the loader while optimizers are configured would
        make Lightning build it before it restores a checkpoint, and lose the place in the data.
        """
        begin_resumed_run(self.trainer)
        if not hasattr(self.trainer.train_dataloader, "state_dict"):
            rank_zero_info(
                f"{type(self.trainer.train_dataloader).__name__} keeps no place in the data: resuming is exact between "
                "epochs; with sslmodules.datamodules it is in their middle too"
            )
        if self.lr_scheduler_callable is None:
            self._fit_warmup()
            schedule: Any = self.lr_schedulers()
            for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
                group["lr"] = rate * self._learning_rate_factor(schedule.last_epoch)

    def _fit_warmup(self) -> None:
        """Shorten a default warm-up that would last for the whole run; warn of one that was asked for."""
        if not self._warmup_chosen:
            self.warmup_epochs = self.default_warmup_epochs  # an earlier run may have been shorter
        steps = self._steps_per_epoch()
        if not steps or self.warmup_epochs * steps < self.trainer.estimated_stepping_batches:
            return
        epochs = self.trainer.estimated_stepping_batches / steps
        if self._warmup_chosen:
            rank_zero_warn(
                f"the warm-up of {self.warmup_epochs:g} epochs is as long as the whole run, so the learning rate never "
                f"reaches its peak; pass warmup_epochs={epochs / 10:.2g} (--model.warmup_epochs {epochs / 10:.2g})"
            )
        else:
            rank_zero_info(f"warm-up: {epochs / 10:.2g} epochs, a tenth of the run, and not {self.warmup_epochs:g}")
            self.warmup_epochs = epochs / 10

    def _learning_rate_factor(self, step: int) -> float:
        if self.trainer.train_dataloader is None:  # asked by the scheduler's constructor; on_train_start asks again
            return 1.0
        factor = self.recipe_schedule(step, self._steps_per_epoch(), self.trainer.estimated_stepping_batches)
        return factor if self.optimizer_callable is not None else factor * self._batch_size_factor()

    def _steps_per_epoch(self) -> int:
        batches = self.trainer.num_training_batches
        return math.ceil(batches / self.trainer.accumulate_grad_batches) if math.isfinite(batches) else 0

    def _batch_size_factor(self) -> float:
        if self.lr_batch_size is None:
            return 1.0
        loader: Any = self.trainer.train_dataloader
        batch_size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        if batch_size is None:
            raise ValueError(
                f"the learning rate of {type(self).__name__} is scaled by the batch size, and {type(loader).__name__} "
                "does not tell it; pass optimizer=... with a rate of your own"
            )
        return batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches / self.lr_batch_size

    def setup(self, stage: str) -> None:
        """Refuse a precision that methods do not have, before Lightning converts the weights."""
        require_fp32_weights(self.trainer.precision)

    def on_fit_start(self) -> None:
        """Fix the seed of views and dropout, the same for all ranks; a resumed run has its own."""
        if self._seed is None:
            self._seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the class, for :func:`load`, the seed, the training data's format, and batches without a step yet.

        Raises:
            NotFiniteError: the losses so far or the weights are not finite.
        """
        for callback in [] if self._trainer is None else self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FiniteLoss):  # Lightning does not ask callbacks where weights alone are saved
                callback.check(self.trainer, self)
        checkpoint["sslmodules"] = {
            "class_path": class_path(type(self)),
            "seed": self._seed,
            "inputs": None if self.input_format is None else self.input_format._asdict(),
            "pending": 0 if self._trainer is None else pending_batches(self.trainer),
        }
        checkpoint.setdefault("hyper_parameters", {})  # which Lightning leaves out where there are none

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take seed and format, refuse a checkpoint of another method, put right where in its epoch the run goes on."""
        saved = checkpoint.get("sslmodules")
        if saved is None:
            return
        fits = set(map(class_path, type(self).__mro__))
        if saved["class_path"] not in fits and checkpoint["state_dict"].keys() != self.state_dict().keys():
            raise ValueError(
                f"{self._checkpoint_name()} is of {saved['class_path']} and this is {class_path(type(self))}; load it "
                "with that class, or with sslmodules.load(path)"
            )
        self._seed = saved["seed"]
        self.input_format = InputFormat(**saved["inputs"]) if saved.get("inputs") else None
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            loops, pending = checkpoint["loops"]["fit_loop"], saved.get("pending", 0)
            repair_progress(loops, self.trainer.accumulate_grad_batches, pending)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as any module does, with one clear sentence where they do not fit.

        Raises:
            ValueError: names or shapes differ.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            found = misfit(state_dict, self.state_dict())
            if not found:
                raise
            raise ValueError(
                f"{self._checkpoint_name()} does not fit this {type(self).__name__}: {found}; pass the arguments that "
                "it was trained with"
            ) from error

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a checkpoint as Lightning does; ``pretrained=True`` among its arguments downloads nothing."""
        with without_pretrained_weights():
            return super().load_from_checkpoint(*args, **kwargs)

    def _checkpoint_name(self) -> str:
        path = None if self._trainer is None else self.trainer.ckpt_path
        return str(path or "the checkpoint")


def _channel_stats(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[list[float] | None, list[float] | None]:
    if mean is None and std is None:
        return None, None
    if mean is None or std is None or len(mean) != len(std) or len(mean) not in (1, channels):
        raise ValueError(f"mean is {mean} and std {std}; expected {channels} numbers each, one a channel, or neither")
    return list(mean), list(std)
