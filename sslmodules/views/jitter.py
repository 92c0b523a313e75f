"""Transforms of colour: jitter and grey."""

import torch
from torch import Generator, Tensor

from sslmodules.views.color import blend_, blend_one_, grayscale, has_colors, rotate_hue_
from sslmodules.views.transforms import Params, Transform, chance, on_chosen, require_probability, uniform

# The operations by torchvision's numbers.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# Values of an image from which on it fills a processor's cache by itself, and is better off alone than in a batch.
LARGE = 2**15


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue, in each image with probability p and in an order of its own.

    torchvision's `ColorJitter` on float images, sample by sample. Factors are uniform in [max(0, 1 - x), 1 + x] for the
    first three, in [-hue, hue] turns for hue; 0 leaves a property alone.

    Args:
        brightness: Not negative, as the two after it.
        contrast: For images of other than 1 or 3 channels, grey is the mean over the channels.
        saturation: Left out, as hue, for images of other than 3 channels; of other than 1 or 3 with a warning.
        hue: In [0, 0.5].
        p: Probability for each image.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> ColorJitter(brightness=1.0, p=1.0)(torch.full((3, 4, 4), 0.5)).unique().numel()
        1
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 0.8,
    ) -> None:
        super().__init__()
        if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
            raise ValueError(
                f"brightness, contrast, saturation and hue are {brightness}, {contrast}, {saturation} and {hue}; "
                "expected the first three not negative and hue in [0, 0.5]."
            )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = require_probability(p)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `mask` (B,), `order` (B, 4) and the `factors` (B, 4) of brightness, contrast, saturation and hue.

        `order` holds the operations' numbers (0 to 3 as just listed), first to last. What is made of the two for
        `apply_params` comes with them.
        """
        mask = chance(batch, self.p, generator)
        order = torch.rand(batch, 4, generator=generator).argsort(1)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [uniform(batch, max(0.0, 1 - x), 1 + x, generator) for x in strengths]
        factors.append(uniform(batch, -self.hue, self.hue, generator))
        return self.steps(mask, order, torch.stack(factors, 1))

    @staticmethod
    def steps(mask: Tensor, order: Tensor, factors: Tensor) -> Params:
        """Return drawn parameters as the steps that compute them.

        Brightness, contrast and saturation are one blend with different coefficients, so whatever its order, each
        sample is three blends (`coefficients` (B, 3 blends, 3)), `before` (B,) of them before the hue's rotation; -1
        for samples that are left alone.
        """
        before = torch.where(mask, (order == HUE).to(torch.uint8).argmax(1), -1)
        blends = order[order != HUE].view(-1, 3)  # (B, 3)
        factor = factors.gather(1, blends)
        rest = 1 - factor
        coefficients = torch.stack([factor, rest * (blends == SATURATION), rest * (blends == CONTRAST)], 2)
        return {"mask": mask, "order": order, "factors": factors, "before": before, "coefficients": coefficients}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the images, those in `mask` jittered."""
        if (self.saturation or self.hue) and not has_colors(images):
            factors = params["factors"].index_fill(1, torch.tensor(SATURATION), 1.0)
            params = self.steps(params["mask"], params["order"], factors)
        if images.device.type == "cpu" and images[0].numel() >= LARGE:
            return self._apply_one_by_one(images, params)
        # Sorted by the number of blends before the hue, most first and the untouched last, every step is due for a
        # contiguous stretch of the batch.
        before = params["before"].tolist()
        rank = sorted(range(len(before)), key=lambda i: -before[i])
        jittered = sum(blends >= 0 for blends in before)
        if jittered == 0 or not (self.brightness or self.contrast or self.saturation or self.hue):
            return images
        order = torch.tensor(rank)
        coefficients = params["coefficients"][order].to(images.device, non_blocking=True)
        coefficients = coefficients.permute(1, 2, 0)[..., None, None, None]  # (3 blends, 3, B, 1, 1, 1)
        views = images.index_select(0, order.to(images.device, non_blocking=True))

        def blend(start: int, stop: int, step: int) -> None:
            if start < stop:
                blend_(views[start:stop], *coefficients[step, :, start:stop])

        due = [sum(blends > step for blends in before) for step in range(3)]  # samples whose blend is before the hue
        for step in range(3):
            blend(0, due[step], step)
        if self.hue and images.shape[1] == 3:
            turns = params["factors"][order[:jittered], HUE].to(images.device, non_blocking=True)
            rotate_hue_(views[:jittered], turns.view(-1, 1, 1))
        for step in range(3):
            blend(due[step], jittered, step)
        return views.index_select(0, order.argsort().to(images.device, non_blocking=True))

    def _apply_one_by_one(self, images: Tensor, params: Params) -> Tensor:
        """Do the same, to the bit, with all steps of one image before the next."""
        drawn = zip(params["before"].tolist(), params["coefficients"].tolist(), params["factors"].tolist(), strict=True)
        for image, (before, coefficients, factors) in zip(images.split(1), drawn, strict=True):
            if before < 0:
                continue
            for step in range(4):
                if step == before and self.hue and images.shape[1] == 3:
                    rotate_hue_(image, image.new_full((1, 1, 1), factors[HUE]))
                if step < 3 and coefficients[step] != [1.0, 0.0, 0.0]:
                    blend_one_(image, *coefficients[step])
        return images


class RandomGrayscale(Transform):
    """Make each image grey (in as many channels) with probability p; left out, with a warning, for other than RGB.

    Example:
        >>> RandomGrayscale(p=1.0)(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).flatten()
        tensor([0.2989, 0.2989, 0.2989])
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = require_probability(p)

    def draw(self, batch: int, height: int, width: int, generator: Generator | None = None) -> Params:
        """Return `mask` (B,)."""
        return {"mask": chance(batch, self.p, generator)}

    def apply_params(self, images: Tensor, params: Params) -> Tensor:
        """Return the images, those in `mask` grey."""
        if self.p > 0 and not has_colors(images):
            return images
        return on_chosen(images, params["mask"], grayscale)
