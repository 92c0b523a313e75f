"""Time and memory of NT-Xent: `sslmodules.losses.nt_xent` beside lightly's `NTXentLoss`, forward and backward.

Run `python benchmarks/nt_xent.py` for the time at batch 1,024 and `python benchmarks/nt_xent.py --peak` for the memory
at large batches, each in a process of its own: how far the resident memory (on cuda: torch's allocations) rises over
what the process held with its inputs in place. A dense matrix of the 2B x 2B similarities is printed beside it.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from lightly.loss import NTXentLoss
from timing import begin, medians, milliseconds, parser, report
from torch import Tensor

from sslmodules.losses import nt_xent

TEMPERATURE = 0.5
BATCHES = (8192, 16384, 32768)


def ours(z1: Tensor, z2: Tensor) -> Tensor:
    """Return our loss."""
    return nt_xent(z1, z2, TEMPERATURE)


def step(loss: Callable[[Tensor, Tensor], Tensor], batch: int, dim: int, device: str) -> Callable[[], Tensor]:
    """Return one forward and backward pass over two views that stay the same."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, dim, generator=generator).to(device).requires_grad_() for _ in range(2)]

    def run() -> Tensor:
        for view in views:
            view.grad = None
        value = loss(*views)
        value.backward()
        return value.detach()

    return run


def compare(args: argparse.Namespace) -> None:
    """Print the times of both, after a check that they compute the same."""
    losses = {"ours": ours, "lightly": NTXentLoss(temperature=TEMPERATURE)}
    steps = {name: step(loss, args.batch, args.dim, args.device) for name, loss in losses.items()}
    torch.testing.assert_close(steps["ours"](), steps["lightly"](), rtol=1e-4, atol=1e-5)
    times = medians({name: milliseconds(run, args.device) for name, run in steps.items()}, args.rounds, warmup=3)
    report(f"NT-Xent, B = {args.batch:,}, d = {args.dim}", times["ours"], "lightly", times["lightly"], 0.6)


def peak(batch: int, dim: int, device: str) -> int:
    """Return by how many bytes one step raises the peak of this process."""
    step(ours, 256, dim, device)()  # threads and libraries are loaded before the count begins
    run = step(ours, batch, dim, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Return a figure of this process in bytes: VmRSS is the present one, VmHWM the highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def peaks(args: argparse.Namespace) -> None:
    """Print the growth of the peak with the batch."""
    print(f"{'B':>8} {'d':>5} {'peak':>10} {'inputs B x d':>14} {'dense 2B x 2B':>15} {'dense / peak':>13}")
    for batch in BATCHES:
        child = [sys.executable, __file__, "--peak-of", str(batch), "--dim", str(args.dim), "--device", args.device]
        child += ["--threads", str(args.threads)]
        lines = subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines()
        used, one, dense = int(lines[-1]), 4 * batch * args.dim, 4 * (2 * batch) ** 2
        print(
            f"{batch:>8,} {args.dim:>5} {used / 1e6:>7.0f} MB {one / 1e6:>11.1f} MB {dense / 1e6:>12,.0f} MB "
            f"{dense / used:>12.0f}x"
        )


def main() -> None:
    """Print one of the two tables."""
    arguments = parser(__doc__, rounds=15)
    arguments.add_argument("--batch", type=int, default=1024)
    arguments.add_argument("--dim", type=int, default=128)
    arguments.add_argument("--peak", action="store_true", help="memory at large batches in the place of time")
    arguments.add_argument("--peak-of", type=int, help="print the peak of this batch, in bytes, and nothing else")
    args = arguments.parse_args()
    if args.peak_of:
        torch.set_num_threads(args.threads)
        print(peak(args.peak_of, args.dim, args.device))
        return
    begin(args)
    (peaks if args.peak else compare)(args)


if __name__ == "__main__":
    main()
