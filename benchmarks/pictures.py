"""What trained methods see and predict, on photographs that anyone may use: the pictures of the README.

Run `python benchmarks/pictures.py rotation/last.ckpt colorization/last.ckpt ... --out docs/pictures`. The photographs
come with scikit-image and are in the public domain or CC0: Eileen Collins (NASA), a rocket (SpaceX), coffee (R. Abe), a
cat (S. van der Walt). None was seen in training.
"""

import argparse
import re
from pathlib import Path

import torch
from skimage import data
from torch import Tensor
from torchvision.utils import save_image

import sslmodules
from sslmodules.tiles import grid
from sslmodules.views import resized_crop

# Name, and a square (top, left, side) of the photograph.
PHOTOGRAPHS = {"astronaut": (0, 70, 320), "chelsea": (0, 60, 300), "coffee": (40, 130, 340), "rocket": (0, 100, 420)}


def photographs(side: int) -> Tensor:
    """Return the squares as uint8 (4, 3, side, side)."""
    squares = []
    for name, (top, left, length) in PHOTOGRAPHS.items():
        whole = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None]
        squares.append(resized_crop(whole, torch.tensor([[top, left, length, length]]), side))
    return torch.cat(squares).mul(255).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    """Write one PNG for every checkpoint and name of a picture."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoints", nargs="+")
    arguments.add_argument("--out", type=Path, default=Path("docs/pictures"))
    arguments.add_argument("--side", type=int, default=64, help="of the photographs, in pixels")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for checkpoint in args.checkpoints:
        method = sslmodules.load(checkpoint).eval()
        torch.manual_seed(args.seed)
        with torch.no_grad():
            shown = method.pictures(photographs(args.side))
        title = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(method).__name__).lower()
        for name, tiles in shown.items():
            path = args.out / (f"{title}.png" if len(shown) == 1 else f"{title}_{name.replace(' ', '_')}.png")
            save_image(grid(tiles), path)
            print(path)


if __name__ == "__main__":
    main()
