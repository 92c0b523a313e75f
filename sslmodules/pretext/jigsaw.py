"""Jigsaw: tell in which order the nine tiles of an image were laid out.

Noroozi, Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016. Each tile is
encoded by itself, and only their embeddings meet: so the encoder has to say what a tile shows, and a small classifier
how the parts of an object lie. The orders are a set of permutations that differ from each other in many places.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from sslmodules.module import SSLModule
from sslmodules.pretext.permutations import permutation_set
from sslmodules.tiles import Tiles, framed
from sslmodules.views import Compose, RandomGrayscale
from sslmodules.views.patches import (
    RandomSquareCrop,
    fit_grid,
    mosaic,
    random_corners,
    require_tiles_fit,
    standardize,
    tiles_at,
)


class Jigsaw(SSLModule):
    """Jigsaw puzzles (Noroozi & Favaro 2016). Defaults: ResNet-50, 105 epochs (VISSL, Goyal et al. 2019).

    On ImageNet pass ``size=255``: tiles of 64 px in cells of 85. The tiles are encoded once, and each of an image's
    puzzles permutes their *embeddings*, which is the same as permuting tiles (batch norm does not know their order).
    At 28 to 40 px there are 1 to 3 px between tiles: pass ``channel_jitter=0`` or 1.

    The encoder sees standardised tiles, and :meth:`preprocess` makes whole images alike.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here. The stages before
            the last carry over best (``--probe.reads``).
        size: side of the square that the grid is cut from, in pixels; None is the shorter side of the images.
        tile: side of the tiles in pixels; None is three quarters of a third of ``size``.
        gap: between neighbouring tiles, in pixels; None is the rest of the third.
        jitter: largest shift of each tile in each direction, in pixels; None is as much as leaves tiles apart.
        permutations: number of orders to tell apart, at most 9!; 100 to 10,000 in the literature.
        rule: how they are chosen, see :func:`~sslmodules.pretext.permutations.permutation_set`.
        permutation_seed: of the set. The set itself is in the checkpoint.
        puzzles: permutations of each image in a batch (Kolesnikov et al. 2019).
        grayscale: probability of an image to be grey. 0.3 in the paper; VISSL has 0.66, and no ``channel_jitter``.
        channel_jitter: largest shift of each channel of each tile by itself, in pixels, against the colour fringes of
            lenses.
        min_scale: smallest share of the image's area that the square covers. Kolesnikov et al. crop 255 of 292 px, the
            area's 0.76.
        embed_dim: length of a tile's embedding.
        hidden_dim: width of the classifier's hidden layer.
        dropout: behind the hidden layer.
        learning_rate: of SGD, for a batch of 256 images (2,304 tiles); scaled in proportion to the global batch.
        weight_decay: of SGD.

    Raises:
        ValueError: a grid that does not fit into the images, tiles that the encoder's patches do not divide, more
            permutations than there are, or more puzzles than permutations.

    >>> method = Jigsaw("conv4", permutations=24, embed_dim=16, hidden_dim=32)
    >>> tiles, order = method.make_views(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    >>> tiles.shape, order.shape, sorted(method.loss([tiles, order]))
    (torch.Size([4, 9, 3, 16, 16]), torch.Size([4, 8]), ['jigsaw_accuracy', 'loss'])
    """

    default_warmup_epochs = 5
    specialised = True
    validation_measure = "loss"
    permutations: Tensor

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        size: int | None = None,
        tile: int | None = None,
        gap: int | None = None,
        jitter: int | None = None,
        permutations: int = 1000,
        rule: Literal["min", "mean"] = "min",
        permutation_seed: int = 0,
        puzzles: int = 8,
        grayscale: float = 0.3,
        channel_jitter: int = 2,
        min_scale: float = 0.76,
        embed_dim: int = 1000,
        hidden_dim: int = 4096,
        dropout: float = 0.5,
        learning_rate: float = 0.1,
        weight_decay: float = 1e-4,
        milestones: Sequence[float] | None = (30, 60, 90, 100),
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
        if not 1 <= puzzles <= permutations:
            raise ValueError(f"puzzles is {puzzles}, expected 1 to {permutations}, the number of permutations")
        self.puzzles = puzzles
        self.grid = partial(fit_grid, tile=tile, gap=gap, jitter=jitter, channel_jitter=channel_jitter)
        if size is not None:
            self.grid(size)  # a grid that does not fit is refused here, or with the first images
        self.view = Compose(RandomSquareCrop(size, min_scale), RandomGrayscale(grayscale))
        self.register_buffer("permutations", permutation_set(permutations, 9, rule, permutation_seed))  # (N, 9)
        self.embedding = nn.Linear(self.feature_dim, embed_dim)
        self.classifier = nn.Sequential(
            nn.Linear(9 * embed_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, permutations),
        )

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Nine tiles of each image, standardised, (B, 9, C, t, t), and its puzzles: numbers of permutations (B, P)."""
        squares = self.view(images, self.generator)  # (B, C, S, S)
        b, c, side, _ = squares.shape
        grid = self.grid(side)
        corners = random_corners(b, side, side, grid, c, self.generator)
        puzzles = torch.rand(b, len(self.permutations), generator=self.generator).topk(self.puzzles).indices
        return [standardize(tiles_at(squares, corners, grid.tile)), puzzles.to(images.device, non_blocking=True)]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Cross-entropy of the permutations over the BP puzzles."""
        tiles, puzzles = views
        logits, order = self.solve(tiles, puzzles), puzzles.long().flatten()  # (BP, N), (BP,)
        return {
            "loss": F.cross_entropy(logits.float(), order),
            "jigsaw_accuracy": (logits.argmax(1) == order).float().mean(),
        }

    def solve(self, tiles: Tensor, puzzles: Tensor) -> Tensor:
        """Logits (BP, N) of the permutation by which each puzzle (B, P) has laid out the tiles (B, 9, C, t, t)."""
        z = self.embedding(self.encode(tiles.flatten(0, 1))).unflatten(0, (-1, 9))  # (B, 9, E)
        laid_out = permuted(z, self.permutations[puzzles.long()])  # (B, P, 9, E)
        return self.classifier(laid_out.flatten(2).flatten(0, 1))

    def preprocess(self, images: Tensor) -> Tensor:
        """Make what the encoder eats: fp32, each image and channel standardised."""
        return standardize(super().preprocess(images))

    def check_images(self, images: Tensor) -> None:
        """Refuse images that the grid does not fit into and tiles that the encoder does not take, besides the usual."""
        super().check_images(images)
        require_tiles_fit(self.encoder, self.grid(self.size or min(images.shape[2:])).tile)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show a puzzle of each image as the network sees it, as it puts it back, each tile marked, and the truth."""
        tiles, puzzles = self._views(images)
        puzzles = puzzles[:, :1]
        order = self.permutations[puzzles]  # (B, 1, 9)
        inverse = self.permutations[self.solve(tiles, puzzles).argmax(1, keepdim=True)].argsort(2)  # as predicted
        puzzle = permuted(tiles, order)[:, 0]  # (B, 9, C, t, t)
        put_back = permuted(puzzle, inverse)[:, 0]
        right = (order.gather(2, inverse)[:, 0] == torch.arange(9, device=order.device)).int()  # (B, 9)
        pieces = [framed(t / 4 + 0.5, marks) for t, marks in ((puzzle, None), (put_back, right), (tiles, None))]
        captions = ["puzzle", "put back by the network", "truth"]
        return {"puzzles": Tiles(torch.stack([mosaic(p) for p in pieces], 1), captions)}

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """SGD, momentum 0.9."""
        return SGD(groups, lr=lr, momentum=0.9, weight_decay=self.weight_decay)


def permuted(tiles: Tensor, permutations: Tensor) -> Tensor:
    """Lay tiles out: slot s of puzzle p receives tile ``permutations[b, p, s]``.

    Args:
        tiles: (B, 9, ...), tiles or their embeddings.
        permutations: (B, P, 9).

    Returns:
        (B, P, 9, ...).

    >>> permuted(torch.tensor([[10, 11, 12]]), torch.tensor([[[2, 0, 1]]]))
    tensor([[[12, 10, 11]]])
    """
    sample = torch.arange(len(tiles), device=tiles.device)[:, None, None]
    return tiles[sample, permutations]
