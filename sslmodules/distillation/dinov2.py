"""DINOv2: DINO for whole images, iBOT for masked patches, and features that keep away from each other.

Oquab, Darcet, Moutakanni et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024. The teacher
sees every patch; for patches that are hidden from it, the student says what the teacher makes of them (iBOT, Zhou et
al. 2022), which teaches local features. KoLeo spreads the images' features over the sphere.
"""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.distillation.base import SelfDistillation, without_noise
from sslmodules.distillation.center import Center
from sslmodules.distillation.gram import GramAnchor
from sslmodules.distillation.head import DINOHead
from sslmodules.distillation.losses import dino_loss, entropy, ibot_loss, koleo, sinkhorn_knopp
from sslmodules.encoders import ViT, layers
from sslmodules.optim import layer_scales, split_groups
from sslmodules.tiles import Tiles
from sslmodules.views.block_masks import spread_block_masks


class DINOv2(SelfDistillation):
    """DINOv2 (Oquab et al. 2024). Defaults: the authors' ImageNet-1k recipe, ViT-L/16, batch 2,048, 125,000 steps.

    Their long recipe (table 16; ViT-L/14 or g/14, 625,000 steps on LVD-142M) has ``targets="sinkhorn_knopp"``,
    ``output_dim=131072``, ``bottleneck_dim=384``, ``patch_bottleneck_dim=256``, ``learning_rate=2e-4``,
    ``final_weight_decay=0.2``, ``momentum=0.994`` and ``layer_decay=1``. Their epoch is 1,250 steps, two epochs of
    ImageNet. To compile what the encoder computes in training, ``method.encoder.blocks.compile()``.

    Args:
        encoder: a name for :func:`~sslmodules.encoders.create_encoder` that gives a :class:`~sslmodules.encoders.ViT`,
            or one with ``mask_token=True``. The authors' has ``encoder_args={"init_values": 1e-5, "uniform_drop_path":
            0.3}``, and ``{"reg_tokens": 4}`` for registers. See
            :class:`~sslmodules.distillation.base.SelfDistillation` and :class:`~sslmodules.SSLModule` for the
            arguments that are not listed here.
        output_dim: K, number of prototypes, of images and of patches.
        hidden_dim: width of the heads' hidden layers.
        bottleneck_dim: length of the unit vectors in front of the prototypes.
        patch_bottleneck_dim: the same in a head of the patches' own (untied); None has them share that of the images.
        targets: ``"centering"`` of the teacher's scores as in DINO, or ``"sinkhorn_knopp"``, three iterations over the
            batch of all ranks.
        mask_share: share of the global crops that have masked patches, exactly.
        mask_ratio: least and greatest share of patches masked in these.
        ibot_weight: of the loss of the masked patches.
        koleo_weight: of the KoLeo loss.
        koleo_crops: 2, summed over both global crops as in the code; 1 as in the paper.
        koleo_gather: whether images of other ranks count as neighbours; the authors' are those of the same GPU.
        gram_weight: of the Gram loss, which holds how the student's patches relate to each other to what an earlier
            teacher said; DINOv3 has 2, late in its run. 0 leaves it out. Here the anchor is the teacher that the run
            begins with, see ``start_from``.
        gram_scale: how many times larger, an integer, the anchor sees the global crops; DINOv3 has 2.
        gram_every: after so many optimizer steps each time the anchor is the teacher anew; DINOv3 has 10,000, and stops
            after three; None never.
        layer_decay: each block's rate is this times that of the next; 1 for the long recipe.
        patch_embed_scale: factor on the rate of the patch projection.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
        learning_rate: for a batch of 1,024; scaled by the root of the global batch's ratio to it.

    Raises:
        ValueError: an encoder that is no ViT with a mask token and a class token that it is read by, unknown targets,
            another number of crops than 1 or 2 for KoLeo, or crops without a size that cannot be made larger.

    >>> vit = {"patch_size": 4, "embed_dim": 24, "depth": 1}
    >>> method = DINOv2(
    ...     "vit_tiny_patch16_224", encoder_args=vit, size=16, local_size=8, local_crops=2, hidden_dim=32, output_dim=64
    ... )
    >>> views = method.make_views(torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8))
    >>> views[-1].shape, sorted(method.loss(views))
    (torch.Size([4, 2, 16]), ['dino', 'ibot', 'kl', 'koleo', 'loss', 'teacher_entropy'])
    """

    lr_batch_size = 1024
    encoder: ViT
    teacher_encoder: ViT

    def __init__(
        self,
        encoder: str | nn.Module = "vit_large_patch16_224",
        *,
        encoder_args: dict[str, Any] | None = None,
        output_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        patch_bottleneck_dim: int | None = None,
        targets: Literal["centering", "sinkhorn_knopp"] = "centering",
        mask_share: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        koleo_crops: int = 2,
        koleo_gather: bool = False,
        gram_weight: float = 0.0,
        gram_scale: int = 1,
        gram_every: int | None = None,
        layer_decay: float = 0.9,
        patch_embed_scale: float = 0.2,
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.32),
        momentum: float = 0.992,
        learning_rate: float = 4e-3,
        **kwargs: Any,
    ) -> None:
        is_vit = isinstance(encoder, str) and encoder.startswith("vit_")
        super().__init__(
            encoder,
            encoder_args={"mask_token": True, **(encoder_args or {})} if is_vit else encoder_args,
            global_scale=global_scale,
            local_scale=local_scale,
            oversize=gram_scale,
            momentum=momentum,
            learning_rate=learning_rate,
            **kwargs,
        )
        _require_vit(self.encoder)
        if gram_scale > 1 and (self.size is None or not gram_weight):
            raise ValueError(
                f"gram_scale is {gram_scale}, with size={self.size} and gram_weight={gram_weight}; pass the size of "
                "the global crops and a weight above 0"
            )
        if targets not in ("centering", "sinkhorn_knopp") or koleo_crops not in (1, 2):
            raise ValueError(
                f"targets is {targets!r} and koleo_crops {koleo_crops}; expected 'centering' or 'sinkhorn_knopp', and "
                "1 or 2"
            )
        self.patch: tuple[int, int] = self.encoder.patch_embed.patch_size
        self.mask_share = mask_share
        self.mask_ratio = mask_ratio
        self.ibot_weight = ibot_weight
        self.koleo_weight = koleo_weight
        self.koleo_crops = koleo_crops
        self.koleo_gather = koleo_gather
        self.gram_weight = gram_weight
        self.gram_scale = gram_scale
        self.gram_every = gram_every
        self.layer_decay = layer_decay
        self.patch_embed_scale = patch_embed_scale

        def head(bottleneck_dim: int) -> DINOHead:
            return DINOHead(
                self.feature_dim, output_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, train_gain=True
            )

        self.head = head(bottleneck_dim)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.patch_head = None if patch_bottleneck_dim is None else head(patch_bottleneck_dim)
        self.teacher_patch_head = copy.deepcopy(self.patch_head)
        if self.teacher_patch_head is not None:
            self.teacher_patch_head.requires_grad_(False)
        self.gram = GramAnchor(self.teacher_encoder) if gram_weight else None
        centering = targets == "centering"
        self.center = Center(output_dim, self.center_momentum) if centering else None
        self.patch_center = Center(output_dim, self.center_momentum) if centering else None

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and heads, each with its teacher."""
        pairs = [*super().momentum_pairs, (self.head, self.teacher_head)]
        if self.patch_head is not None and self.teacher_patch_head is not None:
            pairs.append((self.patch_head, self.teacher_patch_head))
        return pairs

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Global crops, local crops, and which patches of the two global ones are masked, bool (B, 2, N).

        The masks stay on the host, so that the number of masked patches is known without waiting for the device. With
        a ``gram_scale``, the global crops as the anchor sees them come last, (B, C, s·size, s·size) each.
        """
        crops = super().make_views(images)
        large = crops[:2] if self.gram_scale > 1 else []
        crops[:2] = [F.avg_pool2d(crop, self.gram_scale) for crop in crops[:2]]
        height, width = self.grid(crops[0])
        masks = spread_block_masks(
            2 * len(images), height, width, self.mask_share, self.mask_ratio, generator=self.generator
        )
        return [*crops, masks.view(-1, 2, height * width), *large]

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images (..., H, W)."""
        return x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """DINO over the crops, iBOT at the masked patches, KoLeo over the images, Gram over all patches."""
        count = 2 + self.crops.local_crops
        crops, mask, large = views[:count], views[count], views[count + 1 :]
        b, device = len(mask), crops[0].device
        mask = mask.transpose(0, 1).flatten(0, 1)  # (2B, N), in the order of the crops
        masked = mask.flatten().nonzero().flatten().to(device, non_blocking=True)  # (M,)
        whole = torch.cat(crops[:2])  # (2B, C, H, W)

        tokens = self.encoder.forward_tokens(whole, mask=mask.to(device, non_blocking=True))
        h, patches = self._split(tokens, masked)  # (2B, D), (M, D)
        small = [self.encoder.forward_tokens(torch.cat(crops[2:]))[:, 0]] if crops[2:] else []
        scores = self.head(torch.cat([h, *small])).unflatten(0, (-1, b))  # (V, B, K)
        patch_scores = (self.patch_head or self.head)(patches)  # (M, K)

        with torch.no_grad(), without_noise(self.teacher_encoder):
            seen, seen_patches = self._split(self.teacher_encoder.forward_tokens(whole), masked)
            targets = self._targets(self.center, self.teacher_head(seen)).unflatten(0, (2, b))  # (2, B, K)
            patch_answers = (self.teacher_patch_head or self.teacher_head)(seen_patches)
            patch_targets = self._targets(self.patch_center, patch_answers)  # (M, K)

        dino = dino_loss(scores, targets, self.student_temperature)
        ibot = ibot_loss(patch_scores, patch_targets, mask, self.student_temperature)
        spread = torch.stack([koleo(x, gather_ranks=self.koleo_gather) for x in h.chunk(2)[: self.koleo_crops]]).sum()
        loss = dino + self.ibot_weight * ibot + self.koleo_weight * spread
        parts = {"dino": dino.detach(), "ibot": ibot.detach(), "koleo": spread.detach()}
        if self.gram is not None:
            patch_map = tokens[:, self.encoder.num_prefix_tokens :].mT.unflatten(2, self.grid(whole))  # (2B, D, h, w)
            gram = self.gram(patch_map, torch.cat(large) if large else whole)
            loss = loss + self.gram_weight * gram
            parts["gram"] = gram.detach()
        teacher_entropy = entropy(targets)
        return {
            "loss": loss,
            **parts,
            "teacher_entropy": teacher_entropy,
            "kl": dino.detach() - teacher_entropy,
        }

    def _split(self, tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (I, prefix + N, D) to class tokens (I, D) and the masked patches (M, D)."""
        patches = tokens[:, self.encoder.num_prefix_tokens :].flatten(0, 1)  # (I·N, D)
        return tokens[:, 0], patches.index_select(0, masked)

    def _targets(self, center: Center | None, answers: Tensor) -> Tensor:
        """Probabilities of the teacher's scores (rows, K); in training the centre takes note of them."""
        temperature = self.current_teacher_temperature()
        if center is None:
            return sinkhorn_knopp(answers, temperature)
        targets = center(answers, temperature)
        if self.training:
            center.collect(answers)
        return targets

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show each image's global crops with the masked patches in gray, and its local crops."""
        shown = super().pictures(images)
        crops = shown["views"].images  # (B, 2, C, H, W)
        height, width = self.grid(crops)
        masks = spread_block_masks(2 * len(crops), height, width, self.mask_share, self.mask_ratio)
        hidden = masks.view(-1, 2, 1, height, width).to(crops.device)
        hidden = hidden.repeat_interleave(self.patch[0], 3).repeat_interleave(self.patch[1], 4)
        captions = [f"{caption}, masked" for caption in shown["views"].captions]
        return {**shown, "views": Tiles(torch.where(hidden, 0.5, crops), captions)}

    # --- optimizer --------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups by layer-wise rate; those of the prototypes are marked, as their rate is 0 at first."""
        scales = layer_scales(layers(self.encoder), self.layer_decay)
        scales |= {id(p): scales[id(p)] * self.patch_embed_scale for p in self.encoder.patch_embed.parameters()}
        heads = [head for head in (self.head, self.patch_head) if head is not None]
        prototypes = {id(p) for head in heads for p in head.prototypes.parameters()}
        return split_groups(
            super().parameter_groups(),
            lr_scale=lambda p: scales.get(id(p), 1.0),
            last_layer=lambda p: id(p) in prototypes,
        )

    def _batch_size_factor(self) -> float:
        return math.sqrt(super()._batch_size_factor())

    def setup(self, stage: str) -> None:
        """Anchor a new run to the teacher that it begins with."""
        super().setup(stage)
        if stage == "fit" and self.gram is not None and self.trainer.ckpt_path is None:
            self.gram.take(self.teacher_encoder)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Step with the prototypes' rate at 0 for the first epochs; anchor the next steps to the teacher when due."""
        done = self.trainer.global_step
        if self.gram is not None and self.gram_every and done and done % self.gram_every == 0:
            self.gram.take(self.teacher_encoder)
        frozen = [g for g in optimizer.param_groups if g.get("last_layer")] if self.last_layer_is_frozen() else []
        rates = [group["lr"] for group in frozen]
        for group in frozen:
            group["lr"] = 0.0
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        for group, rate in zip(frozen, rates, strict=True):
            group["lr"] = rate

    def clip(self, max_norm: float) -> None:
        """Clip encoder and heads, each by its own norm."""
        for part in (self.encoder, self.head, self.patch_head):
            if part is not None:
                nn.utils.clip_grad_norm_(part.parameters(), max_norm)


def _require_vit(encoder: nn.Module) -> None:
    """Raise a ValueError where patches cannot be masked, or the loss would leave weights out."""
    if not isinstance(encoder, ViT) or encoder.mask_token is None:
        raise ValueError(
            f"the encoder is a {type(encoder).__name__}, expected one that has a token for masked patches; pass a name "
            "'vit_...' of timm's, or a sslmodules.encoders.ViT with mask_token=True"
        )
    if encoder.cls_token is None or encoder.global_pool != "token" or not encoder.dynamic_img_size:
        raise ValueError(
            f"the encoder's features are pooled by {encoder.global_pool!r}, expected by its class token at any size of "
            "images; build it with class_token=True, global_pool='token' and dynamic_img_size=True"
        )
