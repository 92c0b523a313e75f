"""What multi-crop costs: a DINO step with 2 + n crops beside one with 2, and beside what their FLOPs say.

Run `python benchmarks/dino.py` (a minute on two cores). A step is loss, backward and AdamW on views that are there
already; its FLOPs are those of torch's `FlopCounterMode`, student, teacher and head together. The time of n small crops
should follow them: two passes of the backbone, one of the head, no pass a crop. Making the views is timed apart.
"""

import argparse
from collections.abc import Callable

import torch
from timing import begin, medians, milliseconds, parser, report
from torch.utils.flop_counter import FlopCounterMode

from sslmodules.distillation import DINO

TARGET = 1.15


def built(args: argparse.Namespace, crops: int) -> DINO:
    """Return DINO with so many local crops."""
    torch.manual_seed(args.seed)
    method = DINO(
        args.encoder, size=args.size, local_size=args.local_size, local_crops=crops, output_dim=args.output_dim
    )
    return method.to(args.device).train()


def step(method: DINO, images: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """Return one training step on views that stay the same."""
    views = method.make_views(images)
    optimizer = torch.optim.AdamW(p for p in method.parameters() if p.requires_grad)

    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = method.loss(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.center.commit()

    return run


def gigaflops(work: Callable[[], None]) -> float:
    """Return the floating-point operations of the work in units of 10⁹."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Print step, FLOPs and views of both, and their ratios."""
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--encoder", default="vit_tiny_patch16_224")
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--local-size", type=int, default=96)
    arguments.add_argument("--crops", type=int, default=6, help="local crops")
    arguments.add_argument("--output-dim", type=int, default=65536)
    arguments.add_argument("--batch", type=int, default=8)
    args = arguments.parse_args()
    begin(args)
    images = torch.randint(0, 256, (args.batch, 3, 256, 256), dtype=torch.uint8, device=args.device)
    counts = {"many": args.crops, "two": 0}
    methods = {name: built(args, crops) for name, crops in counts.items()}
    steps = {name: step(method, images, args.device == "cuda") for name, method in methods.items()}
    flops = {name: gigaflops(run) for name, run in steps.items()}
    times = medians({name: milliseconds(run, args.device) for name, run in steps.items()}, args.rounds)
    views = medians(
        {name: milliseconds(lambda m=m: m.make_views(images), args.device) for name, m in methods.items()}, args.rounds
    )
    print(f"{args.encoder}, batch {args.batch}, K = {args.output_dim:,}, 2 x {args.size} px + n x {args.local_size} px")
    print(f"{'':<8} {'step':>12} {'FLOPs':>14} {'views':>12}")
    for name, crops in counts.items():
        print(f"2 + {crops:<4} {times[name]:>9.1f} ms {flops[name]:>10.1f} e9 {views[name]:>9.1f} ms")
    ratio = {what: figures["many"] / figures["two"] for what, figures in (("time", times), ("flops", flops))}
    report(f"2 + {args.crops} crops over 2", ratio["time"], "FLOPs", ratio["flops"], TARGET, unit="x ")


if __name__ == "__main__":
    main()
