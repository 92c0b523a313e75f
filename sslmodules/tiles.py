"""Pictures of what a method does: tiles in rows and columns, with captions, right and wrong marked."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

# Okabe, Ito: told apart with any color vision.
GREEN, RED = (0, 158, 115), (213, 94, 0)
GAP = 4  # px between tiles
FRAME = 3  # px of a mark around a tile, beside the gap
APART = 6  # px between captions, beside the gap
LINES = 3  # of a caption, at most, unless one of its words is longer than a third


class Tiles(NamedTuple):
    """Images in rows and columns, and what they are."""

    images: Tensor  # (rows, columns, C, H, W) in [0, 1]
    captions: Sequence[str] = ()  # one a column
    right: Tensor | None = None  # (rows, columns): above 0 right, 0 wrong, below 0 neither


def grid(tiles: Tiles, min_side: int = 64) -> Tensor:
    """Draw tiles as one picture (3, H, W) in [0, 1], captions above the columns, frames around right and wrong ones.

    Tiles that are less than ``min_side`` px wide are enlarged by a whole number, without smoothing. Of more than three
    channels the first three are shown, of two the first.

    >>> grid(Tiles(torch.zeros(2, 3, 1, 16, 16))).shape
    torch.Size([3, 140, 208])
    """
    images = rgb(tiles.images.detach().float().cpu())
    rows, columns, _, height, width = images.shape
    factor = -(-min_side // width)
    height, width = factor * height, factor * width
    font: Any = ImageFont.load_default(min(max(width // 7, 12), 18))
    captions = list(tiles.captions)
    space = 0 if tiles.right is None else FRAME
    cell = max([width + 2 * space, *(APART + _least_width(caption, font) for caption in captions)])
    texts = ["\n".join(_lines(caption, font, cell - APART)) for caption in captions]
    line = sum(font.getmetrics())
    head = GAP + line * max(text.count("\n") + 1 for text in texts) if texts else 0
    size = GAP + columns * (cell + GAP), head + GAP + rows * (height + 2 * space + GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column in range(columns):
        left = GAP + column * (cell + GAP)
        if texts:
            place = left + cell / 2, head
            draw.multiline_text(place, texts[column], "black", font, anchor="md", align="center", spacing=0)
        for row in range(rows):
            x = left + (cell - width) // 2
            y = head + GAP + space + row * (height + 2 * space + GAP)
            mark = -1 if tiles.right is None else float(tiles.right[row, column])
            if mark >= 0:
                corners = (x - space, y - space, x + width + space - 1, y + height + space - 1)
                draw.rectangle(corners, GREEN if mark else RED)
            tile = images[row, column].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            picture.paste(to_pil_image(tile.mul(255).round().to(torch.uint8)), (x, y))
    return pil_to_tensor(picture) / 255


def rgb(images: Tensor) -> Tensor:
    """Return images (..., C, H, W) of any number of channels as (..., 3, H, W), clamped to [0, 1], NaN as 0."""
    if images.shape[-3] != 3:
        images = (
            images[..., :3, :, :]
            if images.shape[-3] > 3
            else images[..., :1, :, :].expand(*images.shape[:-3], 3, *images.shape[-2:])
        )
    return images.nan_to_num().clamp(0, 1)


def framed(pieces: Tensor, right: Tensor | None = None) -> Tensor:
    """Put a frame around pieces of images: green where right, red where wrong, white where neither.

    Args:
        pieces: (..., C, h, w) in [0, 1].
        right: (...), above 0 right, 0 wrong, below 0 neither; None is neither for all.

    Returns:
        (..., 3, h + 2f, w + 2f) with a frame of f = max(1, w // 16) px.

    >>> framed(torch.zeros(1, 1, 2, 2), torch.tensor([0]))[0, :, 0, 0].mul(255).tolist()
    [213.0, 94.0, 0.0]
    """
    width = max(1, pieces.shape[-1] // 16)
    if right is None:
        right = pieces.new_full(pieces.shape[:-3], -1)
    colors = torch.tensor([(255, 255, 255), RED, GREEN], device=pieces.device) / 255
    frames = colors[right.sign().long() + 1][..., None, None]  # (..., 3, 1, 1)
    inside = F.pad(torch.ones_like(pieces[..., :1, :, :]), [width] * 4)
    return torch.where(inside > 0, F.pad(rgb(pieces), [width] * 4), frames.to(pieces))


def _least_width(caption: str, font: Any) -> int:
    """Width in px at which a caption takes few lines, and no word is broken."""
    longest = max((font.getlength(word) for word in caption.split()), default=0)
    return math.ceil(max(longest, 1.15 * font.getlength(caption) / LINES))


def _lines(text: str, font: Any, width: int) -> list[str]:
    """The words of a text in lines of at most so many px."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
