"""Images per CPU-second: SimCLR's two views by `sslmodules.views` and by lightly's `SimCLRTransform`, taking turns.

Run `python benchmarks/views.py`. Both sides start from decoded images in memory and end with two float views an image,
with the same crop areas, jitter strengths and probabilities. A CPU-second counts the work of all threads, so a loader
with more workers changes both sides alike. One thread by default, as in a loader's worker: more threads wait for one
another by spinning, which a CPU-second counts. Where the two differ:

- ours takes a uint8 batch and computes in fp32: crop bicubic, blur a Gaussian of a tenth of the side;
- lightly takes PIL images one by one and rounds to 8 bits after every step: crop bilinear, blur PIL's three boxes.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image

from sslmodules.views import Compose, Normalize, simclr


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(side: int, source: int, batch: int, rounds: int, normalized: bool) -> tuple[float, float]:
    """Return the median images per CPU-second of ours and of lightly's."""
    images = torch.randint(0, 256, (batch, 3, source, source), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    end = [Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"])] if normalized else []
    ours = Compose(*simclr(size=side).transforms, *end)
    lightly = SimCLRTransform(input_size=side, cj_strength=1.0, normalize=IMAGENET_NORMALIZE if normalized else None)

    def run_ours() -> object:
        return [ours(images), ours(images)]

    def run_lightly() -> object:
        return [lightly(picture) for picture in pictures]

    run_ours(), run_lightly()  # once for caches and thread pools
    times = [(cpu_seconds(run_ours), cpu_seconds(run_lightly)) for _ in range(rounds)]
    return batch / statistics.median(t for t, _ in times), batch / statistics.median(t for _, t in times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images a batch at 32 px; an eighth of them at 224 px")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch's, for both sides")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    print(
        f"{'view':>6} {'source':>6} {'mean/std':>8} {'ours':>10} {'lightly':>10} {'ratio':>7}   (images per CPU-second)"
    )
    for side, source, batch in ((32, 32, args.batch), (224, 256, max(1, args.batch // 8))):
        for normalized in (False, True):
            ours, lightly = compare(side, source, batch, args.rounds, normalized)
            mark = "yes" if normalized else "no"
            print(f"{side:>6} {source:>6} {mark:>8} {ours:>10.1f} {lightly:>10.1f} {ours / lightly:>6.1f}x")


if __name__ == "__main__":
    main()
