"""Collectives that say the single-process case aloud: without a process group each is the identity."""

import os
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def works_alone(command: str) -> bool:
    """Return whether this process is the one that runs a command of a single device: the first that was launched.

    It says so where there are other devices or processes, as of torchrun or SLURM.
    """
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) > 0:
        return False
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if torch.cuda.device_count() > 1 or processes > 1:
        device = "cuda:0" if torch.cuda.is_available() else "the CPU"
        print(f"{command} runs in one process, on {device}; other devices and processes are left alone", flush=True)
    return True


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank's loss reads this rank's rows, so their gradients are summed before our own part is cut out.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in the order of the ranks, with gradient.

    The gradient that comes back is the sum over ranks. Under DDP, which averages gradients, a loss that is a mean over
    the local rows then needs no factor of the world size.

    Args:
        x: (B, ...), the same shape on every rank.

    Returns:
        (W·B, ...): rows ``rank()·B`` to ``(rank() + 1)·B`` are this rank's own. ``x`` itself in a single process.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def all_reduced(x: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
    """``x`` reduced over all ranks, element by element and without gradient; in a single process itself."""
    if world_size() > 1:
        x = x.contiguous()
        dist.all_reduce(x, getattr(dist.ReduceOp, op.upper()))
    return x


def gather_objects(value: Any) -> list[Any]:
    """Return what every process holds, any picklable object, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def first_to_fail() -> bool:
    """Return whether this process is the first of the run that asks: the one whose error is the cause of the others'.

    Processes that wait for one that has failed get an error of their own, such as "Connection closed by peer".
    """
    if world_size() == 1:
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.compare_set("sslmodules/first_to_fail", "", str(rank())) == str(rank()).encode()
    except RuntimeError:  # the process that keeps the store has ended
        return False
