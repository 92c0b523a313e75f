"""Teachers that follow their students by an exponential moving average."""

from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sslmodules.optim import cosine_momentum


class Tensors(NamedTuple):
    """What an update touches: teachers and students of the average, and buffers to copy."""

    theirs: list[Tensor]
    ours: list[Tensor]
    copies: list[Tensor]
    originals: list[Tensor]


class MomentumUpdate(Callback):
    """Move each teacher towards its student after every optimizer step: ``ξ ← mξ + (1 - m)θ``.

    Once an optimizer step, however many batches were accumulated for it. It serves any module that has
    ``momentum_pairs``, a list of (student, teacher), and a number ``momentum``; where ``momentum_rises`` is true too, m
    goes from there towards 1 by a cosine over the optimizer steps of the run. It does nothing for other modules.

    Args:
        momentum: m at the start, in [0, 1]; None takes the module's ``momentum``.
        rises: whether m rises to 1; None takes the module's ``momentum_rises``.
        buffers: what happens to buffers such as the running statistics of batch norm. ``"keep"``: the teacher's come
            from its own forward passes (MoCo). ``"copy"``: the student's. ``"average"``: floating-point ones are
            averaged as the parameters are, others copied.

    Raises:
        ValueError: momentum outside [0, 1], an unknown policy, or a pair whose parts differ.

    >>> student, teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(student.weight, 1.0), nn.init.constant_(teacher.weight, 0.0)
    >>> MomentumUpdate().update([(student, teacher)], momentum=0.9)
    >>> round(teacher.weight.item(), 6)
    0.1
    """

    def __init__(
        self,
        momentum: float | None = None,
        rises: bool | None = None,
        buffers: Literal["keep", "copy", "average"] = "keep",
    ) -> None:
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"the momentum is {momentum}, expected a number from 0 (copy) to 1 (never move)")
        if buffers not in ("keep", "copy", "average"):
            raise ValueError(f"buffers is {buffers!r}, expected 'keep', 'copy' or 'average'")
        self.momentum = momentum
        self.rises = rises
        self.buffers = buffers
        self._last_step = 0
        self._tensors = Tensors([], [], [], [])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep teachers out of the gradient, and check that the pairs match."""
        for student, teacher in _pairs(pl_module):
            teacher.requires_grad_(False)
            theirs = [p.shape for p in teacher.parameters()]
            if [p.shape for p in student.parameters()] != theirs:
                raise ValueError(
                    f"a momentum pair of {type(pl_module).__name__} does not match: the student's parameters differ in "
                    "number or shape from the teacher's"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count where the run stands; a resumed run is not at 0."""
        self._last_step = trainer.global_step
        self._tensors = self._collect(_pairs(pl_module))  # once: walking over the modules costs as much as moving them

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update, if the optimizer has stepped since the last time."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if self._tensors.theirs:
            self._move(self._tensors, self.value(trainer, pl_module))

    def value(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Momentum of the optimizer step that has just been done."""
        start = self.momentum if self.momentum is not None else getattr(pl_module, "momentum", None)
        if start is None:
            raise ValueError(
                f"{type(pl_module).__name__} has momentum_pairs but no momentum; set it, or pass MomentumUpdate(0.99)"
            )
        rises = self.rises if self.rises is not None else getattr(pl_module, "momentum_rises", False)
        if not rises:
            return start
        return cosine_momentum(trainer.global_step - 1, trainer.estimated_stepping_batches, start)

    def update(self, pairs: list[tuple[nn.Module, nn.Module]], momentum: float) -> None:
        """Move the teachers of all pairs at once."""
        self._move(self._collect(pairs), momentum)

    def _collect(self, pairs: list[tuple[nn.Module, nn.Module]]) -> Tensors:
        theirs = [p for _, t in pairs for p in t.parameters()]
        ours = [p for s, _ in pairs for p in s.parameters()]
        copies: list[tuple[Tensor, Tensor]] = []
        if self.buffers != "keep":
            for s, t in pairs:
                copies += zip(t.buffers(), s.buffers(), strict=True)
        averaged = [c for c in copies if self.buffers == "average" and c[0].is_floating_point()]
        copied = [c for c in copies if self.buffers == "copy" or not c[0].is_floating_point()]
        return Tensors(
            [*theirs, *(t for t, _ in averaged)],
            [*ours, *(s for _, s in averaged)],
            [t for t, _ in copied],
            [s for _, s in copied],
        )

    @torch.no_grad()
    def _move(self, tensors: Tensors, momentum: float) -> None:
        torch._foreach_lerp_(tensors.theirs, tensors.ours, 1 - momentum)
        if tensors.copies:
            torch._foreach_copy_(tensors.copies, tensors.originals)


def _pairs(module: LightningModule) -> list[tuple[nn.Module, nn.Module]]:
    return getattr(module, "momentum_pairs", [])
