"""Where full precision is needed whatever the Trainer's ``precision`` says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

MIXED = {"16-true": "16-mixed", "bf16-true": "bf16-mixed", "64-true": "32-true"}  # what to take in its place

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in the tensors' own precision: no autocast, and no TF32 or bf16 passes inside fp32 matrix products.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ... as in ``tensor.device.type``.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        autocast = torch.amp.is_autocast_available(device_type)  # the meta device has none
        with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def in_full_precision(function: F) -> F:
    """Make a function of tensors compute in :func:`full_precision`; half-precision arguments arrive as fp32."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args = tuple(_at_least_fp32(a) for a in args)
        kwargs = {k: _at_least_fp32(v) for k, v in kwargs.items()}
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with full_precision(device):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def require_fp32_weights(precision: str | int) -> None:
    """Refuse a ``Trainer(precision=...)`` in which the weights are not fp32.

    Raises:
        ValueError: with what to pass.
    """
    if precision in MIXED:
        raise ValueError(
            f"precision is {precision}, but views, queues and losses are fp32 and need weights that are; pass "
            f"precision={MIXED[precision]!r}"
        )


def _at_least_fp32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x
