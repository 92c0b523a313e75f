"""Time of the exact nearest-neighbour classifier, beside the bare product of the two matrices.

Run `python benchmarks/knn.py`. 10,000 queries against 50,000 features of length 512, 100 classes, k = 20: `knn_scores`
normalises, multiplies, finds the neighbours and counts their votes. The product alone is made for as many queries at a
time, since the whole has 2 GB.
"""

import torch
from timing import begin, medians, milliseconds, parser, report

from sslmodules.metrics import SIMILARITIES, knn_scores

QUERIES, BANK, DIM, CLASSES = 10_000, 50_000, 512, 100


def main() -> None:
    """Print the table."""
    args = parser(__doc__, rounds=3).parse_args()
    begin(args)
    queries, bank = (torch.randn(n, DIM, device=args.device) for n in (QUERIES, BANK))
    labels = torch.randint(CLASSES, (BANK,), device=args.device)

    def product() -> None:
        for part in queries.split(SIMILARITIES // BANK):
            part @ bank.T

    times = medians(
        {
            "ours": milliseconds(lambda: knn_scores(queries, bank, labels, CLASSES), args.device),
            "product": milliseconds(product, args.device),
        },
        args.rounds,
    )
    seconds = {name: time / 1000 for name, time in times.items()}
    report(f"{QUERIES:,} against {BANK:,} at {DIM}", seconds["ours"], "product", seconds["product"], 1.3, "s")


if __name__ == "__main__":
    main()
