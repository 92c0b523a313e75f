"""What DINO and DINOv2 share: the teacher, the crops, and what changes with the optimizer's steps."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.optim import Optimizer

from sslmodules.distillation.center import Center
from sslmodules.encoders import ViT, last_map
from sslmodules.loading import naming, read_checkpoint
from sslmodules.module import SSLModule
from sslmodules.optim import warmup_cosine
from sslmodules.tiles import Tiles
from sslmodules.views.multi_crop import MultiCrop

SHOWN_HEADS = 6  # of the teacher, at most, in the pictures of a run


class SelfDistillation(SSLModule):
    """A student that predicts, from any crop, what a teacher made of its own past says of the large ones.

    Temperature of the teacher, weight decay, freeze of the last layer and teacher's momentum are functions of the
    optimizer steps done, so nothing of them need be saved; centres move once a step. Weight decay and least rate are
    those of the recipe: an ``optimizer`` that is given keeps its own. Without a Trainer every schedule is at its end.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here. The student's
            stochastic depth is the encoder's own (``encoder_args={"drop_path_rate": 0.1}``); the teacher has none.
        size: side of the global crops in pixels; None makes them as large as the images that come in.
        local_size: side of the local crops.
        local_crops: their number.
        global_scale: least and greatest share of the image's area in a global crop.
        local_scale: the same of a local crop.
        oversize: how many times larger than ``size`` the global crops are made, for a method whose :meth:`make_views`
            makes them smaller.
        blur: probability of blurring the first global crop, the second, and each local one.
        student_temperature: τ_s.
        initial_teacher_temperature: τ_t at the start.
        teacher_temperature: τ_t after ``teacher_temperature_epochs``, to which it rises in a straight line.
        teacher_temperature_epochs: 0 has it constant.
        center_momentum: of the centre; 1 switches centring off.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
        freeze_last_layer_epochs: for so long the prototypes of the student do not move.
        clip_norm: greatest norm of the gradient of each parameter (DINO) or part (DINOv2); None does not clip. A
            ``gradient_clip_val`` of the Trainer takes its place.
        learning_rate: of the recipe; see the method.
        min_learning_rate: at the end of the cosine, as it is.
        weight_decay: of the recipe at the start; norms and biases have none.
        final_weight_decay: at the end of the run, by a cosine; None keeps ``weight_decay``.
        start_from: checkpoint of the same method whose weights, teacher and centres a new run starts from; its
            schedules start anew. A run that is resumed does not read it.
    """

    default_warmup_epochs = 10

    def __init__(
        self,
        encoder: str | nn.Module,
        *,
        size: int | None = 224,
        local_size: int = 96,
        local_crops: int = 8,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        oversize: int = 1,
        blur: Sequence[float] = (1.0, 0.1, 0.5),
        student_temperature: float = 0.1,
        initial_teacher_temperature: float = 0.04,
        teacher_temperature: float = 0.07,
        teacher_temperature_epochs: float = 30,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer_epochs: float = 1,
        clip_norm: float | None = 3.0,
        mean: Sequence[float] | None = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] | None = IMAGENET_DEFAULT_STD,
        learning_rate: float = 5e-4,
        min_learning_rate: float = 1e-6,
        weight_decay: float = 0.04,
        final_weight_decay: float | None = 0.4,
        start_from: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            encoder,
            size=size,
            mean=mean,
            std=std,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )
        self.local_size = local_size
        self.student_temperature = student_temperature
        self.teacher_temperatures = initial_teacher_temperature, teacher_temperature
        self.teacher_temperature_epochs = teacher_temperature_epochs
        self.center_momentum = center_momentum
        self.momentum = momentum
        self.freeze_last_layer_epochs = freeze_last_layer_epochs
        self.clip_norm = clip_norm
        self.min_learning_rate = min_learning_rate
        self.final_weight_decay = final_weight_decay
        self.start_from = start_from
        self.teacher_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        made = size if size is None else size * oversize
        self.crops = MultiCrop(made, local_size, local_crops, global_scale, local_scale, blur)

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The encoder and its teacher; a method adds its heads."""
        return [(self.encoder, self.teacher_encoder)]

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Two global crops of each image, (B, C, size, size) each, then the local ones, (B, C, local_size, ...)."""
        return [self.normalize(crop) for crop in self.crops(images, self.generator)]

    def check_images(self, images: Tensor) -> None:
        """Refuse local crops that the encoder cannot cut or was not built for, besides what no method can train on."""
        super().check_images(images)
        embed = getattr(self.encoder, "patch_embed", None)
        patch = getattr(embed, "patch_size", None)
        if not self.crops.local_crops or patch is None:
            return
        if any(self.local_size % side for side in patch):
            raise ValueError(
                f"the local crops are {self.local_size} px and the encoder cuts patches of {patch[0]}x{patch[1]}; pass "
                "a local_size that is a multiple of the patch"
            )
        if getattr(embed, "strict_img_size", False) and self.local_size != (self.size or images.shape[-1]):
            raise ValueError(
                f"{type(self.encoder).__name__} was built for images of one size and the local crops are of another "
                f"({self.local_size} px); pass encoder_args={{'dynamic_img_size': True}}, or local_crops=0"
            )

    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show each image's global crops, and its local ones; of a ViT also what its teacher makes of the whole image.

        ``"attention"``: the image, the mean of the last block's heads, at most six of them, and the patches that hold
        60 % of the mean. ``"pca"``: the image, and its patches' first three principal components as colours.
        """
        # Here, because that package imports this file.
        from sslmodules.evaluation import attention_tiles, class_attention, enlarged, pca_colors, shows_attention

        crops = [self.denormalize(crop) for crop in self._views(images)[: 2 + self.crops.local_crops]]
        shown = {"views": Tiles(torch.stack(crops[:2], 1), ["global crop 1", "global crop 2"])}
        if crops[2:]:
            shown["local views"] = Tiles(
                torch.stack(crops[2:], 1), [f"local crop {i}" for i in range(1, len(crops) - 1)]
            )
        if not isinstance(self.teacher_encoder, ViT):
            return shown
        with torch.no_grad(), without_noise(self.teacher_encoder):
            x = self.preprocess(images)
            image = self.denormalize(x)
            if shows_attention(self.teacher_encoder):
                tiles = attention_tiles(image, class_attention(self.teacher_encoder, x))
                tiles = torch.cat([tiles[:, :-1][:, : 2 + SHOWN_HEADS], tiles[:, -1:]], 1)
                heads = [f"head {i}" for i in range(1, tiles.shape[1] - 2)]
                captions = ["image", "mean of the heads", *heads, "patches with 60% of the mean"]
                shown["attention"] = Tiles(tiles, captions)
            colors = enlarged(pca_colors(last_map(self.teacher_encoder, x)), *x.shape[-2:])  # (B, 3, H, W)
            rgb = image[:, :3] if image.shape[1] >= 3 else image[:, :1].expand_as(colors)
            shown["pca"] = Tiles(torch.stack([rgb, colors], 1), ["image", "components of its patches"])
        return shown

    # --- what changes with the optimizer's steps ----------------------------------------------------------------------

    def current_teacher_temperature(self) -> float:
        """τ_t at the present optimizer step."""
        first, last = self.teacher_temperatures
        return first + (last - first) * self._elapsed(self.teacher_temperature_epochs)

    def current_weight_decay(self) -> float:
        """Weight decay of the recipe at the present optimizer step."""
        last = self.weight_decay if self.final_weight_decay is None else self.final_weight_decay
        if self._trainer is None:
            return last
        total = self.trainer.estimated_stepping_batches
        progress = 0.0 if math.isinf(total) else self.trainer.global_step / total
        return last + (self.weight_decay - last) * 0.5 * (1 + math.cos(math.pi * progress))

    def last_layer_is_frozen(self) -> bool:
        """Whether the run is in its first ``freeze_last_layer_epochs``."""
        return self._elapsed(self.freeze_last_layer_epochs) < 1

    def _elapsed(self, epochs: float) -> float:
        """Share of the first so many epochs that is over, in [0, 1]."""
        steps = 0 if self._trainer is None else epochs * self._steps_per_epoch()
        return min(1.0, self.trainer.global_step / steps) if steps else 1.0

    def recipe_schedule(self, step: int, steps_per_epoch: float, total: float) -> float:
        """Warm-up, then a cosine down to ``min_learning_rate``."""
        if self.milestones is not None or self.optimizer_callable is not None:
            return super().recipe_schedule(step, steps_per_epoch, total)
        final = self.min_learning_rate / (self.learning_rate * self._batch_size_factor())
        return warmup_cosine(step, int(self.warmup_epochs * steps_per_epoch), total, min(1.0, final))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As for any method, with a mark on those whose weight decay follows the schedule."""
        return [{**group, "decays": "weight_decay" not in group} for group in super().parameter_groups()]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the recipe's weight decay of this step."""
        if self.optimizer_callable is None:
            for group in optimizer.param_groups:
                if group.get("decays"):
                    group["weight_decay"] = self.current_weight_decay()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the method does (:meth:`clip`); or all together where the Trainer has a gradient_clip_val."""
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif self.clip_norm is not None:
            self.clip(self.clip_norm)

    def clip(self, max_norm: float) -> None:
        """Clip gradients to ``max_norm``, part by part."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is clipped by itself: write clip(max_norm)")

    def setup(self, stage: str) -> None:
        """Read what a new run starts from."""
        super().setup(stage)
        if stage == "fit" and self.start_from is not None and self.trainer.ckpt_path is None:
            # Of an anchor (DINOv2), a new run has its own or none.
            anchor = {k: v for k, v in self.state_dict().items() if k.startswith("gram.")}
            saved = read_checkpoint(self.start_from)["state_dict"]
            with naming(self.start_from):
                self.load_state_dict(anchor | {k: v for k, v in saved.items() if not k.startswith("gram.")})

    def on_train_start(self) -> None:
        """Begin with nothing collected for the centres."""
        super().on_train_start()
        for center in self._centers():
            center.forget()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the centres after the step, and so before anything can save them."""
        super().optimizer_step(*args, **kwargs)
        for center in self._centers():
            center.commit()

    def _centers(self) -> list[Center]:
        return [module for module in self.children() if isinstance(module, Center)]


@contextmanager
def without_noise(teacher: nn.Module) -> Iterator[None]:
    """Switch a teacher's stochastic depth and dropout off; its batch norms go on as they are (Grill et al. 2020)."""
    noisy = [m for m in teacher.modules() if m.training and not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in noisy:
        module.training = False
    try:
        yield
    finally:
        for module in noisy:
            module.training = True
