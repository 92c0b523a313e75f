"""Photographs that the tests make."""

from pathlib import Path

import numpy as np
from PIL import Image


def flowers(folder: Path, count: int = 24, classes: int = 3, seed: int = 0, side: int = 48) -> Path:
    """Photographs of flowers, JPEG of many shapes, in a folder for each of the kinds daisy, rose, tulip, ...

    A kind shows in the number of petals and in their color; place, size, turn and light differ.
    """
    rng = np.random.default_rng(seed)
    for i in range(count):
        kind = i % classes
        height, width = rng.integers(side * 3 // 4, side * 3 // 2, 2)
        y, x = np.mgrid[:height, :width]
        dy, dx = y - height * rng.uniform(0.4, 0.6), x - width * rng.uniform(0.4, 0.6)
        petals = np.cos(np.arctan2(dy, dx) * (3 + 2 * kind) + rng.uniform(0, 6))
        inside = np.hypot(dy, dx) < min(height, width) * rng.uniform(0.25, 0.4) * (1 + 0.5 * petals)
        color = np.eye(3)[kind % 3] * 0.6 + 0.3
        picture = np.where(inside[..., None], color, [0.1, 0.35, 0.1]) * rng.uniform(0.7, 1)
        picture = (255 * (picture + rng.normal(0, 0.04, picture.shape)).clip(0, 1)).astype(np.uint8)
        path = folder / ("daisy", "rose", "tulip", "aster", "poppy")[kind] / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=92)
    return folder
