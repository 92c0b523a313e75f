"""What CPC looks at: windows of sounds, overlapping patches of images."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from sslmodules.views.patches import tiles_at


def to_sound(sounds: Tensor) -> Tensor:
    """Return sounds as fp32 in [-1, 1]; int16 is divided by its full scale.

    >>> to_sound(torch.tensor([-32768, 16384], dtype=torch.int16))
    tensor([-1.0000,  0.5000])
    """
    return sounds.float() / 2**15 if sounds.dtype == torch.int16 else sounds.float()


def random_windows(sounds: Tensor, window: int, generator: Generator | None = None) -> Tensor:
    """Cut a window out of each sound, anywhere in it.

    Args:
        sounds: (B, C, T).
        window: samples; shorter sounds are returned as they are.
        generator: on the host.

    >>> random_windows(torch.zeros(2, 1, 100), window=64).shape
    torch.Size([2, 1, 64])
    """
    b, _, t = sounds.shape
    if t <= window:
        return sounds
    start = torch.randint(t - window + 1, (b,), generator=generator).to(sounds.device, non_blocking=True)
    return sounds.unfold(2, window, 1)[torch.arange(b, device=sounds.device), :, start]


def overlapping_patches(images: Tensor, patch: int, jitter: int = 0, generator: Generator | None = None) -> Tensor:
    """Cut images into patches, each of which shares half with its neighbour.

    Args:
        images: fp32 (B, C, H, W).
        patch: side p of the patches in pixels, 2 or more.
        jitter: of each patch a part that is smaller by so many pixels, anywhere in it, is kept in the middle of zeros.
        generator: on the host.

    Returns:
        (B, rows, columns, C, p, p).

    Raises:
        ValueError: a smaller patch.

    >>> overlapping_patches(torch.zeros(2, 3, 256, 256), patch=64, jitter=4).shape
    torch.Size([2, 7, 7, 3, 64, 64])
    """
    if patch < 2:
        raise ValueError(f"patches of {patch} px cannot share half with their neighbours; pass a larger patch")
    rows, columns = (torch.arange(0, side - patch + 1, patch // 2) for side in images.shape[2:])
    corners = torch.cartesian_prod(rows, columns)  # (N, 2)
    shift = torch.randint(jitter + 1, (len(images), len(corners), 2), generator=generator)
    patches = tiles_at(images, corners + shift, patch - jitter)  # (B, N, C, p - j, p - j)
    before = jitter // 2
    patches = F.pad(patches, (before, jitter - before) * 2)
    return patches.unflatten(1, (len(rows), len(columns)))
