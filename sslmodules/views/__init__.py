"""Views (augmentations) made for a whole batch at a time, on the device where the images are.

Pure functions take one parameter a sample; transforms draw those on the host and apply them; presets are the papers'
recipes. Images are uint8 or float in [0, 1], (B, C, H, W); views are fp32.
"""

from sslmodules.views.block_masks import block_masks, spread_block_masks
from sslmodules.views.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
    has_colors,
)
from sslmodules.views.corruptions import CORRUPTIONS, Corruption
from sslmodules.views.geometry import GaussianBlur, RandomResizedCrop, Resize, random_boxes
from sslmodules.views.jitter import ColorJitter, RandomGrayscale
from sslmodules.views.lab import lab_to_rgb, lightness, rgb_to_lab
from sslmodules.views.masks import center_mask, overlap_weights, random_blocks_mask, random_region_mask
from sslmodules.views.multi_crop import MultiCrop
from sslmodules.views.pixels import denormalize, horizontal_flip, normalize, solarize
from sslmodules.views.precision import to_float
from sslmodules.views.presets import identity, moco_v1, moco_v2, moco_v3, simclr
from sslmodules.views.resample import center_square, gaussian_blur, resized_crop
from sslmodules.views.transforms import (
    Compose,
    Identity,
    Normalize,
    Params,
    RandomHorizontalFlip,
    RandomSolarize,
    Transform,
)

__all__ = [
    "CORRUPTIONS",
    "ColorJitter",
    "Compose",
    "Corruption",
    "GaussianBlur",
    "Identity",
    "MultiCrop",
    "Normalize",
    "Params",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomSolarize",
    "Resize",
    "Transform",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "block_masks",
    "center_mask",
    "center_square",
    "denormalize",
    "gaussian_blur",
    "grayscale",
    "has_colors",
    "horizontal_flip",
    "identity",
    "lab_to_rgb",
    "lightness",
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "normalize",
    "overlap_weights",
    "random_blocks_mask",
    "random_boxes",
    "random_region_mask",
    "resized_crop",
    "rgb_to_lab",
    "simclr",
    "solarize",
    "spread_block_masks",
    "to_float",
]
