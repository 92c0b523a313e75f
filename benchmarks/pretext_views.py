"""What making views and targets of the pretext methods costs beside a training step of ResNet-18 on the same images.

Run `python benchmarks/pretext_views.py` (a minute). The step is forward and backward of timm's ResNet-18 on the batch
as it is, once: Rotation's own step takes four such batches. Targets that a method computes in its loss (the soft codes
of Colorization, the bins of SplitBrain) are counted too.
"""

from collections.abc import Callable

import timm
import torch
from timing import begin, medians, milliseconds, parser, report
from torch import Tensor, nn

from sslmodules import Colorization, Inpainting, Jigsaw, RelativePatch, Rotation, SplitBrain, SSLModule
from sslmodules.reconstruction.color_bins import soft_encode

TARGET = 0.10
SMALL = {"encoder": "conv4", "encoder_args": {"widths": (8, 16, 16, 16)}}  # the encoder is not measured


def methods(size: int) -> dict[str, SSLModule]:
    """Return every method with the views that it has by default, and those that cost more."""
    patches = {"embed_dim": 8, "hidden_dim": 8}
    return {
        "Rotation": Rotation(**SMALL),
        "RelativePatch": RelativePatch(**SMALL, **patches),
        "RelativePatch, dropped channels": RelativePatch(**SMALL, **patches, aberration="drop"),
        "Jigsaw, 1,000 permutations": Jigsaw(**SMALL, **patches),
        "Inpainting, centre": Inpainting(**SMALL, size=size, width=8),
        "Inpainting, blocks": Inpainting(**SMALL, size=size, width=8, mask="blocks"),
        "Inpainting, regions": Inpainting(**SMALL, size=size, width=8, mask="region"),
        "Colorization, k = 10": Colorization(**SMALL, width=8),
        "SplitBrain": SplitBrain(**SMALL),
    }


def making(method: SSLModule, images: Tensor) -> Callable[[], object]:
    """Return the work from uint8 images to views and targets."""
    if isinstance(method, Colorization):
        return lambda: soft_encode(method._views(images)[1], method.neighbours)
    if isinstance(method, SplitBrain):
        return lambda: method.targets(method._views(images)[0], (8, 8))
    return lambda: method._views(images)


def step(network: nn.Module, images: Tensor) -> None:
    """Run forward and backward."""
    network.zero_grad(set_to_none=True)
    network(images).square().mean().backward()


def main() -> None:
    """Print one line a method."""
    arguments = parser(__doc__, rounds=15)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--size", type=int, default=64)
    args = arguments.parse_args()
    begin(args)
    network = timm.create_model("resnet18", num_classes=0).to(args.device).train()
    images = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8, device=args.device)
    pixels = images.float() / 255
    measures = {"step": milliseconds(lambda: step(network, pixels), args.device)}
    for name, method in methods(args.size).items():
        measures[name] = milliseconds(making(method.to(args.device), images), args.device)
    found = medians(measures, args.rounds)
    for name in list(found)[1:]:
        report(name, found[name], "step", found["step"], TARGET)


if __name__ == "__main__":
    main()
