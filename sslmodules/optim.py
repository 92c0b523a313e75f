"""Optimizers, parameter groups and schedules of the recipes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm, InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(*modules: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those that weight decay acts on, and norms and 1-D parameters (biases).

    The type of the module decides, never a name. The first group leaves ``weight_decay`` to the optimizer, the second
    sets it to 0. A parameter that several modules share counts once; an empty group is left out.

    >>> decayed, spared = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    >>> len(decayed["params"]), len(spared["params"]), spared["weight_decay"]
    (1, 3, 0.0)
    """
    decayed: dict[int, nn.Parameter] = {}
    spared: dict[int, nn.Parameter] = {}
    for module in modules:
        for part in module.modules():
            for p in part.parameters(recurse=False):
                if p.requires_grad and id(p) not in decayed and id(p) not in spared:
                    (spared if isinstance(part, NORMS) or p.ndim <= 1 else decayed)[id(p)] = p
    groups: list[dict[str, Any]] = [{"params": list(decayed.values())}]
    groups.append({"params": list(spared.values()), "weight_decay": 0.0})
    return [g for g in groups if g["params"]]


def split_groups(groups: Iterable[dict[str, Any]], **marks: Callable[[Tensor], Any]) -> list[dict[str, Any]]:
    """Split parameter groups so that all parameters of one have the same marks, which the group then carries.

    Args:
        groups: as of :func:`parameter_groups`.
        marks: name in the group, and what it is for a parameter.

    >>> weight, bias = nn.Linear(1, 1).parameters()
    >>> [g["lr_scale"] for g in split_groups([{"params": [weight, bias]}], lr_scale=lambda p: 0.5 ** (2 - p.ndim))]
    [1.0, 0.5]
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[tuple[Any, ...], list[Tensor]] = {}
        for p in group["params"]:
            parts.setdefault(tuple(mark(p) for mark in marks.values()), []).append(p)
        split += [{**group, "params": ps, **dict(zip(marks, values, strict=True))} for values, ps in parts.items()]
    return split


def layer_scales(layers: Sequence[Iterable[nn.Parameter]], decay: float) -> dict[int, float]:
    """Factor on the rate of each parameter, by id: 1 in the last layer, ``decay`` times that of the next before it.

    Layer-wise rate decay as in BEiT and MAE (He et al. 2022, appendix A.2), of :func:`sslmodules.encoders.layers`.

    >>> first, last = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> sorted(layer_scales([first.parameters(), last.parameters()], decay=0.75).values())
    [0.75, 0.75, 1.0, 1.0]
    """
    return {id(p): decay ** (len(layers) - 1 - i) for i, layer in enumerate(layers) for p in layer}


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al. 2017) as MoCo v3, MAE and DINO use them.

    ``buf ← μ·buf + trust·(g + λp)``, ``p ← p - lr·buf`` with ``trust = η·‖p‖ / ‖g + λp‖``. Parameters of fewer than
    two dimensions (biases, norms) get neither weight decay nor adaptation. It adapts with λ = 0 as well.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, ≥ 0.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0.
        trust_coefficient: η > 0.

    Raises:
        ValueError: an argument out of its range.

    >>> w = nn.Parameter(torch.ones(1, 1))
    >>> w.grad = torch.full((1, 1), 5.0)
    >>> LARS([w], lr=1.0, trust_coefficient=0.1).step()  # the length of the gradient does not matter
    >>> round(w.item(), 6)
    0.9
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        for name, value in [("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)]:
            if value < 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient is {trust_coefficient}, expected above 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. No device sync: the trust ratio stays a tensor."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            wide = [p for p in params if p.ndim > 1]
            flat = [p for p in params if p.ndim <= 1]
            self._apply(flat, [p.grad for p in flat], group)
            if wide:
                updates = torch._foreach_add([p.grad for p in wide], wide, alpha=group["weight_decay"])
                norms = zip(torch._foreach_norm(wide), torch._foreach_norm(updates), strict=True)
                trust = [torch.where((w > 0) & (u > 0), group["trust_coefficient"] * w / u, 1.0) for w, u in norms]
                torch._foreach_mul_(updates, trust)
                self._apply(wide, list(updates), group)
        return loss

    def _apply(self, params: list[Tensor], updates: list[Any], group: dict[str, Any]) -> None:
        if not params:
            return
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def warmup_cosine(step: int, warmup: int, total: float, final: float = 0.0) -> float:
    """Factor on the learning rate: linear from 0 over ``warmup`` steps, then half a cosine down to ``final``.

    Args:
        step: optimizer steps done.
        warmup: length of the warm-up in steps; 0 starts at 1.
        total: length of the run in steps; infinite keeps 1 after the warm-up.
        final: the factor at the end.

    >>> [round(warmup_cosine(s, warmup=2, total=6), 3) for s in range(7)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / warmup
    if math.isinf(total):
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def step_decay(step: int, steps_per_epoch: float, milestones: Iterable[float], factor: float = 0.1) -> float:
    """Factor on the learning rate: multiplied by ``factor`` at each milestone, in epochs counted in optimizer steps.

    >>> [step_decay(s, steps_per_epoch=2, milestones=(1, 2)) for s in range(4)]
    [1, 1, 0.1, 0.1]
    """
    epoch = step / steps_per_epoch if steps_per_epoch else 0
    return math.prod(factor for m in milestones if epoch >= m)


def cosine_momentum(step: int, total: float, start: float) -> float:
    """Momentum of a teacher, ``1 - ½(1 + cos(πt/T))(1 - m₀)``: from ``start`` towards 1, which it never reaches.

    Args:
        step: t, optimizer steps done before this one.
        total: T, steps of the whole run; infinite keeps ``start``.
        start: m₀ in [0, 1].

    >>> round(cosine_momentum(49, 50, 0.996), 8)
    0.99999605
    """
    if math.isinf(total):
        return start
    return 1 - 0.5 * (1 + math.cos(math.pi * min(step, total) / total)) * (1 - start)
