"""Time of a teacher's update: `MomentumUpdate` beside lightly's `update_momentum` and a copy of the same bytes.

Run `python benchmarks/momentum.py`. The models are timm's, with all their parameters; the copy is one fused
`torch._foreach_copy_` from student to teacher. In bytes moved, a fused update is 3 passes over the weights (read both,
write one) and lightly's two steps are 5, so 0.6 is what memory allows where the weights do not fit a cache.
"""

import copy

import timm
import torch
from lightly.models.utils import update_momentum
from timing import begin, medians, milliseconds, parser, report

from sslmodules.callbacks import MomentumUpdate

MODELS = ("resnet50", "vit_base_patch16_224")
MOMENTUM = 0.99


def compare(name: str, device: str, rounds: int) -> None:
    """Print the times of one model."""
    student = timm.create_model(name).to(device)
    ours, theirs = (copy.deepcopy(student).requires_grad_(False) for _ in range(2))
    sources, targets = ([p.detach() for p in m.parameters()] for m in (student, copy.deepcopy(ours)))
    callback = MomentumUpdate()
    tensors = callback._collect([(student, ours)])  # once a run, in on_train_start; lightly walks the modules each time
    times = medians(
        {
            "ours": milliseconds(lambda: callback._move(tensors, MOMENTUM), device),
            "lightly": milliseconds(lambda: update_momentum(student, theirs, MOMENTUM), device),
            "copy": milliseconds(lambda: torch._foreach_copy_(targets, sources), device),
        },
        rounds,
        warmup=3,
    )
    megabytes = sum(p.nbytes for p in sources) / 1e6
    report(f"{name}, {megabytes:.0f} MB", times["ours"], "lightly", times["lightly"], 0.6)
    report(f"{name}, {megabytes:.0f} MB", times["ours"], "copy   ", times["copy"], 1.5)


def main() -> None:
    """Print the table."""
    args = parser(__doc__, rounds=25).parse_args()
    begin(args)
    for name in MODELS:
        compare(name, args.device, args.rounds)


if __name__ == "__main__":
    main()
