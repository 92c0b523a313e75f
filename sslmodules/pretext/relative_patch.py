"""Relative patch location: tell where a tile of an image lies as seen from another one.

Doersch, Gupta, Efros, "Unsupervised Visual Representation Learning by Context Prediction", ICCV 2015. To know that an
ear lies to the upper left of an eye, a network has to recognise both, and the animal. Much of the method is there to
keep it from solving the task by less: edges that run on from tile to tile, and the colour fringes of lenses.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from sslmodules.module import SSLModule
from sslmodules.tiles import Tiles, framed
from sslmodules.views import Compose, RandomGrayscale
from sslmodules.views.patches import (
    RandomSquareCrop,
    downsample_some,
    drop_channels,
    fit_grid,
    mosaic,
    project_color,
    random_corners,
    require_tiles_fit,
    standardize,
    tiles_at,
)
from sslmodules.views.transforms import require_probability


def neighbour_pairs(cells: int = 3) -> tuple[Tensor, Tensor]:
    """Return all ordered pairs of neighbours, side by side or corner to corner, in a square grid of tiles.

    Args:
        cells: tiles along a side; they are numbered row by row.

    Returns:
        pairs (p, q), (M, 2), and labels (M,): where q lies as seen from p, row by row from 0 (upper left) over 3 (left)
        and 4 (right) to 7 (lower right). So ``label(q, p) = 7 - label(p, q)``. int64 both.

    >>> pairs, labels = neighbour_pairs(2)
    >>> pairs[:3].tolist(), labels[:3].tolist()  # from the upper left tile: right, below, lower right
    ([[0, 1], [0, 2], [0, 3]], [4, 6, 7])
    """
    row, column = torch.arange(cells**2) // cells, torch.arange(cells**2) % cells
    dy, dx = row - row[:, None], column - column[:, None]  # (p, q)
    pairs = (torch.maximum(dx.abs(), dy.abs()) == 1).nonzero()  # (M, 2)
    place = (3 * (dy + 1) + dx + 1)[pairs[:, 0], pairs[:, 1]]  # 0 to 8, without the 4 of the middle
    return pairs, place - (place > 4).long()


class RelativePatch(SSLModule):
    """Relative patch location (Doersch et al. 2015). Defaults: ResNet-50, 35 epochs (Kolesnikov et al. 2019).

    On ImageNet pass ``size=255``: tiles of 64 px in cells of 85, as Kolesnikov et al. cut them. Doersch et al. take
    ``size=398, tile=96, gap=48, jitter=7``, which leaves gaps of 34 to 62 px, and ``pairs="all"``. Nine tiles an image
    are encoded once each, whatever the number of pairs. Do not expect much of images of 32 px: their tiles have 8.

    The encoder sees standardised tiles without the colour that was projected away, and :meth:`preprocess` makes whole
    images alike.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here. The stages before
            the last carry over best (``--probe.reads``).
        size: side of the square that the grid is cut from, in pixels; None is the shorter side of the images.
        tile: side of the tiles in pixels; None is three quarters of a third of ``size``.
        gap: between neighbouring tiles, in pixels; None is the rest of the third.
        jitter: largest shift of each tile in each direction, in pixels; None is half the gap, so that tiles at most
            touch.
        pairs: ``"centre"``, the eight outer tiles as seen from the middle one, or ``"all"``, the 40 ordered pairs of
            neighbours.
        aberration: what hides the colour fringes of lenses: ``"project"`` takes the axis from green to magenta out of
            the colours, ``"drop"`` leaves each tile one random channel, None nothing. For RGB only.
        grayscale: probability of an image to be grey, which Kolesnikov et al. have in the place of ``aberration``.
        downsample: probability of a tile to be shrunk to as little as 10 px, and enlarged again.
        min_scale: smallest share of the image's area that the square covers. Doersch et al. resize images to 150,000 to
            450,000 px, so that their grid covers a third or more.
        embed_dim: length of a tile's embedding.
        hidden_dim: width of the classifier's hidden layer.
        dropout: behind the hidden layer.
        learning_rate: of SGD, for a batch of 256 images (2,304 tiles); scaled in proportion to the global batch.
        weight_decay: of SGD.

    Raises:
        ValueError: a grid that does not fit into the images, tiles that the encoder's patches do not divide, or an
            ``aberration`` without RGB.

    >>> method = RelativePatch("conv4", embed_dim=16, hidden_dim=32)
    >>> views = method.make_views(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
    >>> [view.shape for view in views], sorted(method.loss(views))
    ([torch.Size([8, 9, 3, 16, 16])], ['loss', 'position_accuracy'])
    """

    default_warmup_epochs = 5
    specialised = True
    validation_measure = "loss"
    first: Tensor
    second: Tensor
    labels: Tensor

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        size: int | None = None,
        tile: int | None = None,
        gap: int | None = None,
        jitter: int | None = None,
        pairs: Literal["centre", "all"] = "centre",
        aberration: Literal["project", "drop"] | None = "project",
        grayscale: float = 0.66,
        downsample: float = 1 / 3,
        min_scale: float = 1 / 3,
        embed_dim: int = 1000,
        hidden_dim: int = 4096,
        dropout: float = 0.5,
        learning_rate: float = 0.1,
        weight_decay: float = 1e-4,
        milestones: Sequence[float] | None = (15, 25),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            encoder,
            size=size,
            mean=None,  # each tile is standardised by itself
            std=None,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            milestones=milestones,
            **kwargs,
        )
        if pairs not in ("centre", "all"):
            raise ValueError(f"pairs is {pairs!r}, expected 'centre' or 'all'")
        if aberration not in ("project", "drop", None):
            raise ValueError(f"aberration is {aberration!r}, expected 'project', 'drop' or None")
        if aberration is not None and self.in_channels != 3:
            raise ValueError(
                f"aberration={aberration!r} acts on red, green and blue, and in_channels is {self.in_channels}; pass "
                "aberration=None"
            )
        self.grid = partial(fit_grid, tile=tile, gap=gap, jitter=jitter)
        if size is not None:
            self.grid(size)  # a grid that does not fit is refused here, or with the first images
        self.aberration = aberration
        self.downsample = require_probability(downsample)
        self.view = Compose(RandomSquareCrop(size, min_scale), RandomGrayscale(grayscale))
        neighbours, labels = neighbour_pairs()
        chosen = neighbours[:, 0] == 4 if pairs == "centre" else slice(None)
        for name, values in [("first", neighbours[chosen, 0]), ("second", neighbours[chosen, 1])]:
            self.register_buffer(name, values, persistent=False)  # (P,)
        self.register_buffer("labels", labels[chosen], persistent=False)
        self.embedding = nn.Linear(self.feature_dim, embed_dim)
        self.classifier = nn.Sequential(
            nn.Linear(2 * embed_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, 8),
        )

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Nine tiles of each image, row by row, standardised: one tensor (B, 9, C, t, t)."""
        squares = self.view(images, self.generator)  # (B, C, S, S)
        b, c, side, _ = squares.shape
        grid = self.grid(side)
        tiles = tiles_at(squares, random_corners(b, side, side, grid, c, self.generator), grid.tile)
        if self.aberration == "project":
            tiles = project_color(tiles)
        tiles = standardize(downsample_some(tiles, self.downsample, self.generator))
        if self.aberration == "drop":
            keep = torch.randint(3, (b, 9), generator=self.generator)
            tiles = drop_channels(tiles, keep, int(torch.randint(2**62, (), generator=self.generator)))
        return [tiles]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Cross-entropy of the eight places over all pairs."""
        logits = self.place(views[0], self.first, self.second).flatten(0, 1)  # (BP, 8)
        labels = self.labels.repeat(len(views[0]))  # (BP,)
        return {
            "loss": F.cross_entropy(logits.float(), labels),
            "position_accuracy": (logits.argmax(1) == labels).float().mean(),
        }

    def place(self, tiles: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Logits (B, P, 8) of where tiles ``second`` (P,) lie as seen from ``first`` (P,); of tiles (B, 9, C, t, t)."""
        z = self.embedding(self.encode(tiles.flatten(0, 1))).unflatten(0, (-1, 9))  # (B, 9, E)
        pairs = torch.cat([z[:, first], z[:, second]], 2)  # (B, P, 2E)
        return self.classifier(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])

    def preprocess(self, images: Tensor) -> Tensor:
        """Make what the encoder eats: fp32, colours projected where they are in training, each image standardised."""
        images = super().preprocess(images)
        return standardize(project_color(images) if self.aberration == "project" else images)

    def check_images(self, images: Tensor) -> None:
        """Refuse images that the grid does not fit into and tiles that the encoder does not take, besides the usual."""
        super().check_images(images)
        require_tiles_fit(self.encoder, self.grid(self.size or min(images.shape[2:])).tile)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show the nine tiles as the network sees them, and the outer ones where it places them, each marked."""
        (tiles,) = self._views(images)
        outer = torch.tensor([k for k in range(9) if k != 4], device=tiles.device)
        log_p = self.place(tiles, torch.full_like(outer, 4), outer).float().log_softmax(2)  # (B, 8 tiles, 8 places)
        placed, right = tiles.clone(), torch.full(tiles.shape[:2], -1, device=tiles.device)  # the middle is given
        for row, marks, scores in zip(placed, right, log_p.cpu().numpy(), strict=True):
            _, best = linear_sum_assignment(scores, maximize=True)
            place = outer[torch.from_numpy(best)]
            row[place] = row[outer]
            marks[place] = (place == outer).to(marks)
        # Two standard deviations to each side.
        shown = [mosaic(framed(t / 4 + 0.5, marks)) for t, marks in ((tiles, None), (placed, right))]
        return {"tiles": Tiles(torch.stack(shown, 1), ["tiles of the image", "placed by the network"])}

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """SGD, momentum 0.9 (Nesterov)."""
        return SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
