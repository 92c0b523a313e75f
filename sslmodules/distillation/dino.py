"""DINO: from a small crop, predict what a teacher that is the student's own average says of a large one.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021. There are neither labels nor negatives nor a predictor. Teacher and student could agree on one answer for
all images: taking a running mean off the teacher's scores (centring) lets no prototype take all, and a low temperature
(sharpening) keeps all from being alike; together they balance.
"""

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from sslmodules.distillation.base import SelfDistillation, without_noise
from sslmodules.distillation.center import Center
from sslmodules.distillation.head import DINOHead
from sslmodules.distillation.losses import dino_loss, entropy
from sslmodules.encoders import pool
from sslmodules.optim import LARS


class DINO(SelfDistillation):
    """Self-distillation with no labels (Caron et al. 2021). Defaults: ImageNet, ViT-S/16, batch 1,024 (section 3.2).

    A teacher's entropy that falls to 0 is a collapse to one prototype, one that rises to log K a collapse to all alike;
    in both the divergence ``kl`` of the student from the teacher goes to 0 (figure 7). The paper reads its features off
    the teacher, ``teacher_encoder``; :meth:`forward` is the student.

    Args:
        encoder: any, also a ResNet. See :class:`~sslmodules.distillation.base.SelfDistillation` and
            :class:`~sslmodules.SSLModule` for the arguments that are not listed here.
        output_dim: K, number of prototypes.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: length of the unit vectors in front of the prototypes.
        head_layers: Linears of the head in front of them.
        head_norm: batch normalisation in the head (for a ResNet; a ViT has none anywhere).
        norm_last_layer: keep the prototypes' lengths at 1; False is a little better for ViT-S and less stable.
        optimizer_name: ``"adamw"``; ``"sgd"`` as for ResNet-50, or ``"lars"``, both with momentum 0.9.
        learning_rate: for a batch of 256; scaled in proportion to the global batch.

    >>> method = DINO("conv4", size=16, local_size=8, local_crops=2, hidden_dim=32, output_dim=64)
    >>> views = method.make_views(torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8))
    >>> len(views), sorted(method.loss(views))
    (4, ['features', 'kl', 'loss', 'projections', 'teacher_entropy'])
    """

    def __init__(
        self,
        encoder: str | nn.Module = "vit_small_patch16_224",
        *,
        output_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_layers: int = 3,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        optimizer_name: Literal["adamw", "sgd", "lars"] = "adamw",
        learning_rate: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, learning_rate=learning_rate, **kwargs)
        self.optimizer_name = optimizer_name
        self.head = DINOHead(
            self.feature_dim,
            output_dim,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            layers=head_layers,
            norm=head_norm,
            train_gain=not norm_last_layer,
        )
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.center = Center(output_dim, self.center_momentum)

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and head, each with its teacher."""
        return [*super().momentum_pairs, (self.head, self.teacher_head)]

    def project(self, features: Tensor) -> Tensor:
        """Unit vector (B, bottleneck_dim) of the representation, which the prototypes are compared with."""
        return self.head.project(features)

    def teach(self, crops: Tensor) -> Tensor:
        """Scores of the teacher, (B, K), without gradient."""
        with torch.no_grad(), without_noise(self.teacher_encoder):
            return self.teacher_head(pool(self.teacher_encoder(crops)))

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Each global crop as the teacher sees it against every other crop as the student sees it."""
        b = len(views[0])
        # One pass for each size of crops, and one through the head for all.
        h = torch.cat([self.encode(torch.cat(part)) for part in (views[:2], views[2:]) if part])  # (V·B, D)
        z = self.head.project(h)
        scores = self.head.prototypes(z).unflatten(0, (-1, b))  # (V, B, K)
        answers = self.teach(torch.cat(views[:2])).unflatten(0, (2, b))  # (2, B, K)
        targets = self.center(answers, self.current_teacher_temperature())
        if self.training:
            self.center.collect(answers)  # it moves after the optimizer's step
        loss = dino_loss(scores, targets, self.student_temperature)
        teacher_entropy = entropy(targets)
        return {
            "loss": loss,
            "features": h[:b].detach(),
            "projections": z[:b].detach(),
            "teacher_entropy": teacher_entropy,
            "kl": loss.detach() - teacher_entropy,
        }

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """AdamW, SGD or LARS."""
        if self.optimizer_name == "adamw":
            return AdamW(groups, lr=lr, weight_decay=self.weight_decay)
        if self.optimizer_name == "sgd":
            return SGD(groups, lr=lr, momentum=0.9, weight_decay=self.weight_decay)
        return LARS(groups, lr=lr, weight_decay=self.weight_decay)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave the prototypes out of the first steps: without a gradient, no optimizer touches them."""
        super().on_before_optimizer_step(optimizer)
        if self.last_layer_is_frozen():
            for p in self.head.prototypes.parameters():
                p.grad = None

    def clip(self, max_norm: float) -> None:
        """Clip the gradient of each parameter by itself."""
        clip_each(self.parameters(), max_norm)


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale each parameter's gradient by itself down to a norm of at most ``max_norm``; nothing waits for the device.

    >>> p = nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([30.0, 40.0])
    >>> clip_each([p], 3.0)
    >>> p.grad
    tensor([1.8000, 2.4000])
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        factors = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in torch._foreach_norm(grads)]
        torch._foreach_mul_(grads, factors)
