"""Video colorization: copy the colours of a frame from the frames before it.

Vondrick, Shrivastava, Fathi, Guadarrama, Murphy, "Tracking Emerges by Colorizing Videos", ECCV 2018. All frames are
grey to the network; each position of the last one points to positions of the others and takes the colours there. A
thing keeps its colour while it moves, so whoever is to point at the right colour has to find the thing again.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from sslmodules.batch import unpack
from sslmodules.encoders import last_map, stage_maps
from sslmodules.module import SSLModule
from sslmodules.precision import in_full_precision
from sslmodules.reconstruction.clip_head import ClipHead
from sslmodules.reconstruction.colorization import require_rgb, require_three_channels, scaled_lightness
from sslmodules.reconstruction.fitting import fit_before_training
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop
from sslmodules.views.lab import lab_to_rgb, lightness, rgb_to_lab

MAX_CLIPS = 1024  # whose last frames the colours are fitted to
CELLS = 32  # a side, of the maps of colours that they are fitted to: the paper's


class VideoColorization(SSLModule):
    """Tracking by colorizing videos (Vondrick et al. 2018). Defaults: ResNet-18 with its map at an eighth; Adam.

    Clips come in as (B, T, 3, H, W): T - 1 reference frames, 3 in the paper, and the target, which is the last. What is
    learned is an embedding of every position of a frame, ``encode_map(preprocess(frames))``, by which masks or key
    points are carried on through a video as colours are in training. ``module(clips)`` is the encoder's
    representation, pooled over positions and frames.

    The colours are the centroids of a k-means on the training frames, computed once before the first step, see
    :meth:`fit_colors`, and kept in the checkpoint. The authors train on 256 px at 6 frames a second, with Adam at 1e-3
    for 60,000 steps and 1e-4 for 340,000 more, 32 clips a step; here the rate falls by a cosine.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here; as a module, it
            takes one channel. Its map should stay fine: an eighth of the frame, as ``conv4``'s is.
        encoder_args: further arguments of a named encoder; None gives ``resnet18`` ``{"output_stride": 8}``.
        output_dim: channels of the embedding.
        head_width: channels inside the head, see :class:`~sslmodules.reconstruction.clip_head.ClipHead`.
        head_depth: its 3-D convolutions.
        temperature: T of the pointers, above 0; the authors take 0.5 for tracking.
        num_colors: centroids that k-means finds.
        colors: centroids (a, b) to use in their place, in units of L*a*b*.
        min_scale: smallest share of the frame's area that the crop covers, the same crop in all frames of a clip.
        learning_rate: of Adam, taken as it is whatever the batch.

    Raises:
        ValueError: clips that are not RGB or too short, a mean or std (the lightness is scaled to [-1, 1]), or an
            argument out of its range.

    >>> method = VideoColorization("conv4", head_width=16, head_depth=2)
    >>> clips = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    >>> method(clips).shape, method.encode_map(method.preprocess(clips[:, 0])).shape
    (torch.Size([2, 256]), torch.Size([2, 64, 4, 4]))
    >>> sorted(method.loss(method.make_views(clips)))
    ['color_accuracy', 'color_accuracy_still', 'features', 'loss']
    """

    lr_batch_size = None
    input_kind = "video"
    encoder_channels = 1
    reads_map = True
    validation_measure = "loss"

    colors: Tensor
    color_frames: Tensor

    def __init__(
        self,
        encoder: str | nn.Module = "resnet18",
        *,
        encoder_args: dict[str, Any] | None = None,
        output_dim: int = 64,
        head_width: int = 256,
        head_depth: int = 5,
        temperature: float = 1.0,
        num_colors: int = 16,
        colors: Sequence[Sequence[float]] | None = None,
        min_scale: float = 0.5,
        learning_rate: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        if encoder == "resnet18" and encoder_args is None:
            encoder_args = {"output_stride": 8}
        super().__init__(encoder, encoder_args=encoder_args, learning_rate=learning_rate, **kwargs)
        require_rgb(self)
        given = _spiral(num_colors) if colors is None else torch.tensor(colors, dtype=torch.float32)
        if given.ndim != 2 or len(given) < 2 or given.shape[1] != 2 or not temperature > 0:
            raise ValueError(
                f"got {num_colors} colors, colors={colors} and temperature={temperature}; expected at least 2 colors, "
                "given as pairs (a, b), and a temperature above 0"
            )
        self.temperature = temperature
        self.fits_colors = colors is None
        self.view = RandomResizedCrop(self.size, scale=(min_scale, 1.0), interpolation="bilinear", flip=0.5)
        self.head = ClipHead(self.feature_dim, output_dim, head_width, head_depth)
        self.register_buffer("colors", given)
        self.register_buffer("color_frames", torch.tensor(0))  # that they were fitted to

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Lightness of a crop of each clip, (B, T, 1, H, W) in [-1, 1], and its colours (a, b), (B, T, 2, H, W)."""
        crops = self.view(images.flatten(1, 2), self.generator)  # (B, 3T, H, W): one crop for all frames
        lab = rgb_to_lab(crops.unflatten(1, (-1, 3)).flatten(0, 1)).unflatten(0, images.shape[:2])
        return [scaled_lightness(lab[:, :, :1]), lab[:, :, 1:]]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Negative log-likelihood of the target's colours under those that its positions point to (equation 3).

        A colour that no reference shows cannot be pointed to. Such positions count 0 and stay in the number that the
        sum is divided by, so that the losses of two halves of a batch average to that of the whole.
        ``color_accuracy_still`` is the accuracy of pointing to the same position of the last reference.
        """
        x, ab = views
        h = self.frame_maps(x)  # (B, T, D, h, w)
        true = nearest(cell_means(ab, h.shape[-2:]), self.colors)  # (B, T, h, w)
        target = true[:, -1]
        shown = F.one_hot(true[:, :-1], len(self.colors)).movedim(-1, 2).to(x)  # (B, T - 1, K, h, w)
        predicted = copied(self.head(h), shown, self.temperature)  # (B, K, h, w), sums to 1
        p = predicted.gather(1, target[:, None])[:, 0]  # (B, h, w)
        can_be_known = shown.amax((1, 3, 4)).gather(1, target.flatten(1)).view_as(p)
        return {
            "loss": -(can_be_known * p.clamp(min=torch.finfo(p.dtype).tiny).log()).mean(),
            "color_accuracy": (predicted.argmax(1) == target).float().mean(),
            "color_accuracy_still": (true[:, -2] == target).float().mean(),
            "features": h.mean((1, 3, 4)).detach(),
        }

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """Build Adam."""
        return torch.optim.Adam(groups, lr=lr, weight_decay=self.weight_decay)

    # --- from frames and clips to features --------------------------------------------------------------------------

    def preprocess(self, images: Tensor) -> Tensor:
        """Lightness, from [0, 100] to [-1, 1], of clips or frames (..., 3, H, W): (..., 1, H, W)."""
        x = scaled_lightness(lightness(super().preprocess(images.flatten(0, -4))))
        return x.unflatten(0, images.shape[:-3])

    def frame_maps(self, x: Tensor) -> Tensor:
        """The encoder's last map of every frame of preprocessed clips (B, T, 1, H, W): (B, T, D, h, w)."""
        return last_map(self.encoder, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def encode(self, x: Tensor) -> Tensor:
        """Representation (B, D) of preprocessed clips, or of frames: the encoder's last map, pooled."""
        return self.frame_maps(_as_clips(x)).mean((1, 3, 4))

    def encode_map(self, x: Tensor) -> Tensor:
        """Embeddings (B, T, d, h, w) of preprocessed clips; (B, d, h, w) of frames, each a clip that stands still."""
        embeddings = self.head(self.frame_maps(_as_clips(x)))
        return embeddings if x.ndim == 5 else embeddings[:, 0]

    def encode_stages(self, x: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """Maps (B, C, H, W) of chosen stages of the encoder, or of all; of clips the mean over their frames."""
        x = _as_clips(x)
        return [m.unflatten(0, x.shape[:2]).mean(1) for m in stage_maps(self.encoder, x.flatten(0, 1), stages)]

    def check_images(self, images: Tensor) -> None:
        """Refuse what is not RGB and what has no reference, besides what no method can train on."""
        if images.ndim == 5:
            require_three_channels(self, images[:, 0])
            if images.shape[1] < 2:
                raise ValueError(
                    f"the clips have {images.shape[1]} frame, and a target needs at least one reference before it; let "
                    "the loader give clips of 4 frames (VideoFrames, VideoFolder: frames=4)"
                )
        super().check_images(images)

    # --- which colours there are ------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_colors(self, batches: Iterable[Any], max_clips: int = MAX_CLIPS) -> None:
        """Find the colours by k-means, in the last frames of clips.

        A run does so by itself before its first step, on clips that are spread evenly over the training set, and keeps
        the result in its checkpoints. Call it before the run where the training set cannot be read ahead.

        Args:
            batches: what a loader yields.
            max_clips: how many to read.

        Raises:
            ValueError: clips that do not fit, or fewer different colours in them than are to be found.

        >>> method = VideoColorization("conv4", head_depth=1, num_colors=2)
        >>> red, blue = torch.zeros(2, 1, 4, 3, 16, 16).unbind()
        >>> red[:, :, 0], blue[:, :, 2] = 1, 1
        >>> method.fit_colors([red, blue])
        >>> method.colors[method.colors[:, 1].argsort()].round()
        tensor([[  79., -108.],
                [  80.,   67.]])
        """
        points: list[Tensor] = []
        for batch in batches:
            clips, _, views = unpack(batch)
            if clips is not None:
                self.check_images(clips)
                frames = clips[: max_clips - len(points), -1].to(self.device)
                ab = rgb_to_lab(self._undo(frames))[:, 1:]
            else:
                ab = views[1][: max_clips - len(points), -1]  # type: ignore[index]
            cells = F.adaptive_avg_pool2d(ab, CELLS)[:, :, ::2, ::2]  # (B, 2, 16, 16): neighbours are alike
            points += cells.flatten(2).mT.cpu()  # (256, 2) each
            if len(points) >= max_clips:
                break
        found = torch.cat(points).numpy() if points else np.empty((0, 2), np.float32)
        different = len(np.unique(found.round(), axis=0))
        if different < len(self.colors):
            raise ValueError(
                f"{len(points)} training clips show {different} different colours, fewer than the {len(self.colors)} "
                "that are to be found; pass clips in colour, or a smaller num_colors"
            )
        kmeans = KMeans(len(self.colors), random_state=(self._seed or 0) % 2**32).fit(found)
        self.colors.copy_(torch.from_numpy(kmeans.cluster_centers_))
        self.color_frames.fill_(len(points))

    def on_train_start(self) -> None:
        """Find the colours of the training clips, unless they are known: given, fitted before, or in the checkpoint."""
        super().on_train_start()
        if self.fits_colors and self.color_frames == 0:
            rank_zero_info(f"finding {len(self.colors)} colours in the training clips, by k-means")
            instead = "call fit_colors(batches) before the run, or pass colors="
            fit_before_training(self, self.fit_colors, ["colors", "color_frames"], MAX_CLIPS, instead)

    # --- for the eye ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show of each clip the last reference, the target as it is seen, with the colors pointed to, and the truth."""
        frames = super().preprocess(images.flatten(0, 1))
        lab = rgb_to_lab(frames).unflatten(0, images.shape[:2])  # (B, T, 3, H, W)
        embeddings = self.encode_map(scaled_lightness(lab[:, :, :1]))
        references = cell_means(lab[:, :-1, 1:], embeddings.shape[-2:])  # (B, T - 1, 2, h, w)
        ab = F.interpolate(copied(embeddings, references, self.temperature), lab.shape[-2:], mode="bilinear")
        grey, colored = (lab_to_rgb(torch.cat([lab[:, -1, :1], c], 1)) for c in (torch.zeros_like(ab), ab))
        frames = frames.unflatten(0, images.shape[:2])
        captions = ["reference", "next frame in gray", "colors copied from references", "next frame"]
        return {"colours": Tiles(torch.stack([frames[:, -2], grey, colored, frames[:, -1]], 1), captions)}


@in_full_precision
def copied(features: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
    """Copy values from the frames of a clip to its last frame, whose positions j point to positions i of all others.

    Position j takes ``Σ_i A_ij values_i`` with ``A_ij = exp(f_iᵀf_j / T) / Σ_k exp(f_kᵀf_j / T)`` (equations 1 and 2).

    Args:
        features: (B, T, d, h, w), the target last.
        values: (B, T - 1, c, h, w), such as colours, their classes as one-hot codes, or masks.
        temperature: T above 0; towards 0 each position takes the value of a single one.

    Returns:
        (B, c, h, w).

    Example:
        >>> features = torch.tensor([[9.0, 0], [0, 9], [9, 0]]).view(1, 3, 2, 1, 1)  # the last frame is as the first
        >>> copied(features, torch.tensor([5.0, 7.0]).view(1, 2, 1, 1, 1)).flatten()
        tensor([5.])
    """
    target = features[:, -1:].flatten(3).mT  # (B, 1, N, d)
    references, values = (t.transpose(1, 2).flatten(2).mT[:, None] for t in (features[:, :-1], values))  # (B, 1, M, ·)
    out = F.scaled_dot_product_attention(target, references, values, scale=1 / temperature)  # (B, 1, N, c)
    return out[:, 0].mT.unflatten(2, features.shape[-2:])


def cell_means(ab: Tensor, size: Sequence[int]) -> Tensor:
    """Mean colours of the cells of a map of ``size`` (h, w): (B, T, 2, H, W) to (B, T, 2, h, w)."""
    return F.adaptive_avg_pool2d(ab.flatten(0, 1), size).unflatten(0, ab.shape[:2])  # type: ignore[arg-type]


def nearest(ab: Tensor, colors: Tensor) -> Tensor:
    """Number of the nearest of K colours (K, 2): (B, T, 2, h, w) to int64 (B, T, h, w).

    >>> nearest(torch.tensor([9.0, -1.0]).view(1, 1, 2, 1, 1), torch.tensor([[0.0, 0.0], [10.0, 0.0]])).item()
    1
    """
    return (ab.unsqueeze(2) - colors[:, :, None, None]).square().sum(3).argmin(2)


def _as_clips(x: Tensor) -> Tensor:
    return x if x.ndim == 5 else x[:, None]


def _spiral(count: int) -> Tensor:
    """Colours (K, 2) spread evenly over a disc around grey, to stand there until they are fitted."""
    number = torch.arange(count)
    angle = number * math.pi * (3 - math.sqrt(5))  # the golden angle
    return 60 * (number / max(count, 1)).sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
