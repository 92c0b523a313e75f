"""Multi-crop: a few large views of each image and many small ones."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from sslmodules.views.geometry import RandomResizedCrop
from sslmodules.views.presets import byol_colors
from sslmodules.views.transforms import Compose, Transform


class MultiCrop(nn.Module):
    """Two global crops of each image and n local ones (SwAV, Caron et al. 2020; DINO, Caron et al. 2021, section 3).

    All: crop (bicubic, as in the authors' code), flip 0.5, jitter 0.8 with strengths (0.4, 0.4, 0.2, 0.1), grey 0.2,
    blur; the second global crop is solarised with probability 0.2. Values stay in [0, 1]; the authors normalise at the
    end, here the method does. Call it as a :class:`~sslmodules.views.Transform`, with a batch (B, C, H, W).

    Args:
        size: side of the global crops in pixels; None is that of the incoming images.
        local_size: side of the local crops.
        local_crops: n, 0 for none.
        global_scale: least and greatest share of the image's area in a global crop. Without local crops DINO takes
            (0.14, 1).
        local_scale: the same of a local crop.
        blur: probability of blurring the first global crop, the second, and each local one.

    Raises:
        ValueError: a negative number of crops, or not three probabilities.

    >>> crops = MultiCrop(size=32, local_size=12, local_crops=3)(torch.rand(4, 3, 40, 40))
    >>> [tuple(crop.shape) for crop in crops[1:3]], len(crops)
    ([(4, 3, 32, 32), (4, 3, 12, 12)], 5)
    """

    def __init__(
        self,
        size: int | None = 224,
        local_size: int = 96,
        local_crops: int = 8,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        blur: Sequence[float] = (1.0, 0.1, 0.5),
    ) -> None:
        super().__init__()
        if local_crops < 0 or len(blur) != 3:
            raise ValueError(
                f"local_crops is {local_crops} and blur {blur}; expected at least 0 and three probabilities"
            )
        self.local_crops = local_crops

        def crop(size: int | None, scale: tuple[float, float]) -> Transform:
            return RandomResizedCrop(size, scale=scale, interpolation="bicubic", flip=0.5)

        self.global_1 = Compose(crop(size, global_scale), *byol_colors(blur[0], 0.0))
        self.global_2 = Compose(crop(size, global_scale), *byol_colors(blur[1], 0.2))
        self.local_crop = crop(local_size, local_scale)
        self.local_colours = Compose(*byol_colors(blur[2], 0.0))

    def forward(self, images: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """Crops of a batch (B, C, H, W), uint8 or float in [0, 1]: two global ones, then n local, fp32."""
        crops = [self.global_1(images, generator), self.global_2(images, generator)]
        if self.local_crops:
            # Colours of all local crops at once: on a GPU, time goes by the number of steps and not of pixels.
            small = torch.cat([self.local_crop(images, generator) for _ in range(self.local_crops)])
            crops += self.local_colours(small, generator).chunk(self.local_crops)
        return crops
