"""Linear probing: what a linear classifier reads off a frozen encoder, at many learning rates at once."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from sslmodules.callbacks.features import frozen
from sslmodules.encoders import stage_maps
from sslmodules.evaluation.base import Evaluation
from sslmodules.optim import LARS, parameter_groups

# Oquab et al. 2023, appendix B.3
SWEEP = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5)

Tokens = Literal["patches", "class", "both"]


class LinearProbe(Evaluation):
    """Linear classifiers on a frozen encoder, one a learning rate, of which validation images choose the best.

    All of them read the same features, computed once, and begin with the same weights; no one moves another. Every
    ``val/accuracy`` is that of the best. The encoder stays as it was to the bit, its batch norms' statistics included.
    See :class:`~sslmodules.evaluation.Evaluation` for the arguments that are not listed here, and ``configs/`` for the
    protocols of the papers.

    Args:
        ckpt: a checkpoint of this package, or published weights beside the name of their ``encoder``.
        learning_rates: one a classifier, for a batch of 256; scaled in proportion to the global batch. With an
            ``optimizer`` of your own they are the rates as they are, in place of its own.
        stages: numbers of the encoder's stages (a transformer's blocks) whose vectors are read, one behind the other,
            negative ones from the last; None reads the representation.
        tokens: what of a transformer's stages: the mean of the ``"patches"``; the ``"class"`` token behind the final
            norm (DINO with ViT-S: ``stages=[-4, -3, -2, -1]``); or ``"both"``, the class tokens and then the mean patch
            of the last of the stages (DINO with ViT-B: ``stages=[-1]``). Other encoders have a map, whose mean is read.
        batch_norm: normalise the features by batch norm without scale and shift (MAE).
        lars: LARS in the place of SGD (MAE).
        weight_decay: of the classifiers.

    Raises:
        ValueError: no learning rate or several without validation images, stages that the encoder lacks, or class
            tokens of an encoder that is no transformer.

    >>> probe = LinearProbe(encoder="conv4", num_classes=10, learning_rates=[0.1, 1.0], stages=[-2, -1])
    >>> probe.logits(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        learning_rates: Sequence[float] = SWEEP,
        stages: Sequence[int] | None = None,
        tokens: Tokens = "patches",
        batch_norm: bool = False,
        lars: bool = False,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # The rates are those of the groups; a learning_rate beside them is no argument.
        super().__init__(ckpt, learning_rate=1.0, weight_decay=weight_decay, **kwargs)
        if not learning_rates:
            raise ValueError("learning_rates is empty; pass one at least")
        self.learning_rates = list(learning_rates)
        self.stages = stages
        self.tokens = tokens
        self.lars = lars
        for part in self.frozen_parts:
            part.requires_grad_(False)
        if stages is not None:
            with frozen(self):
                side = self.size or 64
                empty = self.preprocess(torch.zeros(1, self.in_channels, side, side))
                self.feature_dim = self.read(empty).shape[1]
        self.norm = nn.BatchNorm1d(self.feature_dim, eps=1e-6, affine=False) if batch_norm else nn.Identity()
        self.build()

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """The encoder, and what stands behind it."""
        return [self.encoder, self.behind]

    def new_heads(self, num_classes: int) -> list[nn.Module]:
        """Linear classifiers with the same weights, N(0, 0.01)."""
        weight = 0.01 * torch.randn(num_classes, self.feature_dim)
        heads = [nn.Linear(self.feature_dim, num_classes) for _ in self.learning_rates]
        for head in heads:
            head.weight.data.copy_(weight)
            nn.init.zeros_(head.bias)
        return [*heads]

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """Features (B, D) of what the encoder eats, without gradient."""
        return self.encode(x) if self.stages is None else stage_vectors(self.encoder, x, self.stages, self.tokens)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, R, C) of all classifiers, in one product."""
        features = self.norm(self.read(x).float())  # (B, D)
        heads: Any = self.heads
        weight = torch.cat([head.weight for head in heads])  # (R·C, D)
        bias = torch.cat([head.bias for head in heads])  # (R·C,)
        return F.linear(features, weight, bias).unflatten(1, (len(self.heads), -1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters of each classifier with its own rate."""
        heads = zip(self.heads, self.learning_rates, strict=True)
        return [{**group, "lr": rate} for head, rate in heads for group in parameter_groups(head)]

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """SGD or LARS, momentum 0.9."""
        return (LARS if self.lars else SGD)(groups, momentum=0.9, weight_decay=self.weight_decay)

    def on_train_start(self) -> None:
        """Refuse a choice without images to choose by."""
        super().on_train_start()
        if len(self.heads) > 1 and not sum(self.trainer.num_val_batches):
            raise ValueError(
                f"there are {len(self.heads)} learning rates and no validation images to choose by; pass a DataModule "
                "with some, or a single rate in learning_rates"
            )

    def on_validation_epoch_end(self) -> None:
        """Find and log the best, and its rate."""
        super().on_validation_epoch_end()
        rates = torch.tensor(self.learning_rates, device=self.device)
        self.log("val/best_learning_rate", rates[self.best], sync_dist=True)


def stage_vectors(encoder: nn.Module, x: Tensor, stages: Sequence[int], tokens: Tokens = "patches") -> Tensor:
    """Vectors (B, ...) of chosen stages, one behind the other.

    Args:
        encoder: see :func:`~sslmodules.encoders.stage_maps`; for class tokens a transformer of timm that has one.
        x: what it eats, (B, C, H, W).
        stages: indices, negative ones from the last.
        tokens: ``"patches"``, the mean of each stage's map; ``"class"``, the class token of each behind the final norm;
            ``"both"``, these and the mean of the last chosen stage's patches behind the norm.

    Raises:
        ValueError: unknown tokens, no class token, or no such stage.

    >>> from sslmodules.encoders import ConvNet
    >>> stage_vectors(ConvNet(), torch.zeros(2, 3, 8, 8), [0, -1]).shape
    torch.Size([2, 288])
    """
    if tokens == "patches":
        return torch.cat([m.mean((2, 3)) for m in stage_maps(encoder, x, stages)], 1)
    model: Any = encoder
    if tokens not in ("class", "both") or getattr(model, "cls_token", None) is None:
        raise ValueError(
            f"tokens is {tokens!r}, of a {type(encoder).__name__}; expected 'patches', or 'class' or 'both' of a "
            "transformer that has a class token"
        )
    depth = len(model.blocks)
    if any(not -depth <= s < depth for s in stages):
        raise ValueError(f"the stages {list(stages)} were asked for, {type(encoder).__name__} has {depth}")
    found = model.forward_intermediates(x, return_prefix_tokens=True, norm=True, intermediates_only=True)
    chosen = [found[s] for s in stages]  # of maps (B, D, h, w) and tokens (B, prefix, D)
    vectors = [prefix[:, 0] for _, prefix in chosen]
    return torch.cat([*vectors, chosen[-1][0].mean((2, 3))] if tokens == "both" else vectors, 1)
