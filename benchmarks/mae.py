"""What masking saves: MAE's encoder, forward and backward, on a quarter of the patches beside all of them.

Run `python benchmarks/mae.py` (ViT-B/16, 224 px, 75 % masked) or with `--device cuda`, there in bf16. The time per
image is reported, the encoder's alone: the decoder that pretraining adds sees all patches on both sides.
"""

import argparse
from collections.abc import Callable

import torch
from timing import begin, medians, milliseconds, parser, verdict
from torch import Tensor

from sslmodules.encoders import ViT, create_encoder

# How many times as fast per image the encoder has to be; a quarter of the tokens bounds it by about 4.
GOAL = 2.5
# A step also makes the gradients of all weights, whatever the tokens: one or two images would measure those as well.
BATCH = {"cpu": 8, "cuda": 128}


def step(encoder: ViT, images: Tensor, keep: Tensor | None, device: str) -> Callable[[], None]:
    """Return one forward and backward pass over the patches that are kept, or over all."""

    def run() -> None:
        encoder.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            tokens = encoder.forward_tokens(images, keep)
        tokens.float().square().mean().backward()

    return run


def compare(args: argparse.Namespace) -> None:
    """Print the times of both and how many times as fast the masked one is."""
    encoder = create_encoder(args.encoder, image_size=args.size).to(args.device).train()
    assert isinstance(encoder, ViT)
    batch = args.batch or BATCH[args.device]
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.randn(batch, 3, args.size, args.size, generator=generator).to(args.device)
    patches = (args.size // encoder.patch_embed.patch_size[0]) ** 2
    shuffle = torch.rand(batch, patches, generator=generator).argsort(1).to(args.device)
    kept = {"masked": int(patches * (1 - args.mask_ratio)), "all": patches}
    keep = {"masked": shuffle[:, : kept["masked"]], "all": None}
    work = {name: milliseconds(step(encoder, images, index, args.device), args.device) for name, index in keep.items()}
    times = {name: time / batch for name, time in medians(work, args.rounds).items()}
    ratio = times["all"] / times["masked"]
    print(f"{args.encoder}, {args.size} px, batch {batch}, forward and backward:")
    for name, count in kept.items():
        print(f"{name + ',':<8} {count:>4} of {patches} patches   {times[name]:>9.2f} ms an image")
    print(f"{ratio:.2f} times as fast   goal >= {GOAL:.1f}   {verdict(ratio >= GOAL)}")


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__, rounds=7)
    arguments.add_argument("--encoder", default="vit_base_patch16_224")
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--mask-ratio", type=float, default=0.75)
    arguments.add_argument("--batch", type=int, help="images; by default 8 on cpu, 128 on cuda")
    args = arguments.parse_args()
    begin(args)
    compare(args)


if __name__ == "__main__":
    main()
