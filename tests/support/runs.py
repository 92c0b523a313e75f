"""Small runs on the CPU that the tests share."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset


def images(count: int = 32, channels: int = 3, side: int = 16, classes: int = 4, seed: int = 0) -> TensorDataset:
    """uint8 images whose class shows in their brightness and in the width of their stripes, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    number = labels.view(-1, 1, 1, 1)
    noise = torch.randint(0, 70, (count, channels, side, side), generator=generator)
    stripes = 30 * (torch.arange(side) // (number + 1) % 2)  # (count, 1, 1, side)
    return TensorDataset((noise + stripes + 35 * number).clamp(max=255).to(torch.uint8), labels)


def sounds(count: int = 32, classes: int = 4, seed: int = 0, length: int = 256) -> TensorDataset:
    """Sounds (1, length) in [-1, 1] whose class shows in their loudness and pitch, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    number = labels.view(-1, 1, 1) + 1
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    wave = (phase + torch.arange(length) * number * 0.1).sin() * number / (classes + 1)
    return TensorDataset(wave + 0.05 * torch.rand(count, 1, length, generator=generator), labels)


def clips(count: int = 32, frames: int = 4, **kwargs: Any) -> TensorDataset:
    """Clips (frames, 3, 16, 16) of :func:`images` that move to the right, and labels."""
    still, labels = images(count, **kwargs)[:]
    return TensorDataset(torch.stack([still.roll(t, -1) for t in range(frames)], 1), labels)


EXAMPLES = {"image": images, "sound": sounds, "video": clips}


def loader(count: int = 32, batch_size: int = 8, kind: str = "image", **kwargs: Any) -> DataLoader:
    """Batches of images, sounds or clips in their order."""
    return DataLoader(EXAMPLES[kind](count, **kwargs), batch_size)


def trainer(folder: Any, **kwargs: Any) -> Trainer:
    """A quiet Trainer that leaves nothing but what the test asks for."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(default_root_dir=folder, **{**quiet, **kwargs})


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy of a module's state dict."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def learned(method: Any, images: Callable[[int, torch.Generator], torch.Tensor], steps: int, batch: int) -> float:
    """Accuracy on new images after training on a stream of others."""
    method.generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(steps):
        loss = method.loss(method.make_views(images(batch, method.generator)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.eval()
    with torch.no_grad():
        out = method.loss(method.make_views(images(256, method.generator)))
    return next(value.item() for name, value in out.items() if name.endswith("_accuracy"))
