"""Time of a linear probe at 13 learning rates at once, beside the same probe at one.

Run `python benchmarks/probe_sweep.py`. A step is all of it: crop and flip on the device, frozen encoder, classifiers,
SGD; ResNet-18 at 64 px, 200 classes, batch 64.
"""

import torch
from timing import begin, medians, milliseconds, parser, quiet_trainer, report
from torch.utils.data import DataLoader, TensorDataset

from sslmodules import LinearProbe
from sslmodules.evaluation.linear_probe import SWEEP

BATCH, SIDE, CLASSES, STEPS = 64, 64, 200, 8


def main() -> None:
    """Print the table."""
    args = parser(__doc__, rounds=5).parse_args()
    begin(args)
    images = torch.randint(0, 256, (BATCH * STEPS, 3, SIDE, SIDE), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images, torch.randint(CLASSES, (len(images),))), BATCH)

    def fit(rates: tuple[float, ...]) -> None:
        probe = LinearProbe(encoder="resnet18", num_classes=CLASSES, learning_rates=rates)
        quiet_trainer(args.device, STEPS, num_sanity_val_steps=0, limit_val_batches=1).fit(probe, loader, loader)

    times = medians(
        {
            "sweep": milliseconds(lambda: fit(SWEEP), args.device),
            "one": milliseconds(lambda: fit((0.1,)), args.device),
        },
        args.rounds,
    )
    report(f"{len(SWEEP)} rates, {STEPS} steps", times["sweep"], "one rate", times["one"], 1.5)


if __name__ == "__main__":
    main()
