"""Fine-tuning: a pretrained encoder and a linear classifier trained together, whole or in the last blocks."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from sslmodules.encoders import blocks_of, layers, pool
from sslmodules.evaluation.base import Evaluation

MAGNITUDES = 11  # 0 to 10
HEAD_STD = 2e-5


class FineTune(Evaluation):
    """Fine-tuning with labels. Defaults: MAE's of ViT-B, batch 1,024, 100 epochs (He et al. 2022, table 9).

    Its drop path is ``encoder_args={"drop_path_rate": 0.1}``. Few labels are the DataModules' ``label_fraction``, with
    ``unlabeled="drop"``. What is frozen stays as it was to the bit, batch norms' statistics included. See
    :class:`~sslmodules.evaluation.Evaluation` for the arguments that are not listed here.

    Args:
        ckpt: a checkpoint of this package, or published weights beside the name of their ``encoder``.
        blocks: how many of the encoder's last blocks are trained, with what stands behind them (partial fine-tuning,
            MAE section 4.3); 0 trains the classifier alone, None everything. See
            :func:`~sslmodules.encoders.blocks_of`.
        global_pool: classify the mean of a transformer's patches, behind a layer norm of its own in the place of the
            encoder's last one (MAE); False the representation.
        layer_decay: each block's rate is this times that of the next; 1 has one rate for all.
        mixup: α of mixup (Zhang et al. 2018), for half of the batches where there is also ``cutmix``; 0 leaves it out.
        cutmix: α of CutMix (Yun et al. 2019).
        randaugment: magnitude from 0 to 10 of RandAugment (Cubuk et al. 2020): of two of torchvision's operations, each
            image gets each by chance; None leaves it out.
        label_smoothing: share of the target that all classes divide between them; with ``multi_label``, 0 and 1.
        learning_rate: of AdamW, for a batch of 256; scaled in proportion to the global batch.
        weight_decay: of AdamW; norms and biases have none.

    Raises:
        ValueError: more blocks than the encoder has, global_pool of an encoder without patches or final norm, or
            RandAugment of images that are neither grey nor RGB.

    >>> finetune = FineTune(encoder="conv4", num_classes=10, blocks=1)
    >>> sum(p.requires_grad for p in finetune.encoder.parameters())
    3
    """

    default_warmup_epochs = 5

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        blocks: int | None = None,
        global_pool: bool = False,
        layer_decay: float = 0.75,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        randaugment: int | None = 9,
        label_smoothing: float = 0.1,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(ckpt, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.layer_decay = layer_decay
        self.label_smoothing = label_smoothing
        self.norm: nn.Module | None = None
        if global_pool:
            if not hasattr(self.encoder, "patch_embed") or not isinstance(self.encoder.norm, nn.LayerNorm):
                raise ValueError(
                    "global_pool is for transformers with a final norm, the encoder is a "
                    f"{type(self.encoder).__name__}; pass global_pool=False"
                )
            self.encoder.norm, self.norm = nn.Identity(), nn.LayerNorm(self.feature_dim, eps=1e-6)
        self._freeze(blocks)
        mixes = [make(alpha=alpha) for make, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]
        self.mixing = v2.RandomChoice(mixes) if mixes and self.input_kind == "image" else None
        self.operations = None
        if randaugment is not None and self.input_kind == "image":
            if self.in_channels not in (1, 3):
                raise ValueError(
                    f"RandAugment is of images with 1 or 3 channels, these have {self.in_channels}; pass "
                    "randaugment=None"
                )
            one = v2.RandAugment(1, randaugment, MAGNITUDES, v2.InterpolationMode.BILINEAR)
            self.operations = v2.Compose([v2.RandomApply([one]), v2.RandomApply([one])])
        self.build()

    def _freeze(self, blocks: int | None) -> None:
        """Leave the gradient to so many of the encoder's last blocks and what stands behind them; None: to all."""
        self.encoder.requires_grad_(blocks is None)
        self.behind.requires_grad_(blocks != 0)
        if getattr(self.encoder, "mask_token", None) is not None:
            self.encoder.mask_token.requires_grad_(False)  # no image has one
        if blocks:
            depth = len(blocks_of(self.encoder))
            if not 0 < blocks <= depth:
                raise ValueError(
                    f"blocks is {blocks}, expected 0 to {depth}, as many as the encoder has; or None for all"
                )
            for p in chain(*layers(self.encoder)[-blocks - 1 :]):
                p.requires_grad_(True)

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """The parts of the encoder, and behind it, of which no parameter is trained."""
        modules = chain(self.encoder.modules(), self.behind.modules())
        parts = [(part, list(part.parameters())) for part in modules]
        return [part for part, params in parts if params and not any(p.requires_grad for p in params)]

    def new_heads(self, num_classes: int) -> list[nn.Module]:
        """One linear classifier, near zero."""
        head = nn.Linear(self.feature_dim, num_classes)
        nn.init.trunc_normal_(head.weight, std=HEAD_STD)
        nn.init.zeros_(head.bias)
        return [head]

    @property
    def encoding_parts(self) -> dict[str, nn.Module]:
        """With the norm behind the mean of the patches."""
        return super().encoding_parts | ({} if self.norm is None else {"norm": self.norm})

    def encode(self, x: Tensor) -> Tensor:
        """Representation (B, D) of what :meth:`preprocess` gives."""
        return super().encode(x) if self.norm is None else self.norm(pool(self.encode_map(x)))

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, 1, C)."""
        return self.heads[0](self.encode(x))[:, None]

    def augment(self, images: Tensor) -> Tensor:
        """Crop, mirror and RandAugment, each image by itself, in [0, 1]."""
        images = super().augment(images)
        return images if self.operations is None else torch.stack([self.operations(image) for image in images])

    def mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth the targets (B, C); mix each image with its neighbour in the batch, or paste a box of that into it."""
        even = 0.5 if self.multi_label else 1 / targets.shape[1]
        known = targets.new_ones(()) if self.multi_label else targets.sum(1, keepdim=True)
        targets = targets + self.label_smoothing * (even * known - targets)
        return (x, targets) if self.mixing is None else self.mixing(x, targets)
