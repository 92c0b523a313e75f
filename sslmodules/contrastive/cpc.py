"""CPC (contrastive predictive coding): a summary of the past tells the future from other moments.

Van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018. An encoder turns a
sequence into latents, a context network that sees the past alone sums them up, and from the context at t one matrix a
step picks the latent at t + k among others. What stays predictable over several steps is what the signal is about.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.batch import InputKind, unpack
from sslmodules.callbacks.features import frozen
from sslmodules.contrastive.cpc_loss import Negatives, future_cross_entropy, require_horizon
from sslmodules.contrastive.cpc_networks import CONTEXTS, ENCODERS
from sslmodules.contrastive.cpc_views import overlapping_patches, random_windows, to_sound
from sslmodules.encoders import pool, stage_maps
from sslmodules.module import SSLModule
from sslmodules.tiles import Tiles
from sslmodules.views import grayscale, has_colors
from sslmodules.views.patches import RandomSquareCrop

Score = Literal["dot", "mean"]
Representation = Literal["context", "latents"]


class CPC(SSLModule):
    """Contrastive predictive coding (van den Oord et al. 2018). Defaults: speech at 16 kHz, windows of 20,480 samples.

    :meth:`audio`, :meth:`image` and :meth:`video` fill in what fits each. The sequence is of latents over time for
    sound, of frames for video, and for an image of rows of overlapping patches, from the top down. Sound is (B, C, T),
    int16 or float in [-1, 1]; video (B, T, C, H, W).

    ``module(x)`` is the mean of the contexts over time: they hold what the latents alone, of some milliseconds each, do
    not. Of images it is the mean of the patches' latents, as in the paper. :meth:`frames` gives each context by itself.

    Args:
        encoder: ``"cpc_audio"`` (:class:`~sslmodules.contrastive.cpc_networks.AudioEncoder`), or a module from sounds
            (B, C, samples) to latents (B, T, D). Of images and video, an encoder of single patches and frames:
            ``"cpc_resnet"`` (:func:`~sslmodules.contrastive.cpc_networks.patch_resnet`), or what
            :class:`~sslmodules.SSLModule` takes. See there also for the arguments that are not listed here.
        encoder_args: further arguments of a named encoder, such as ``{"widths": [256, 256, 256, 256, 256]}``.
        input_kind: what a loader yields.
        context: ``"gru"``, ``"lstm"`` or ``"convolution"`` (causal); ``"masked_rows"`` of an image's patches; or a
            module from latents to contexts of the same shape but for their length, its ``num_features``.
        context_args: further arguments of a named context network, such as ``{"dim": 256, "layers": 1}``.
        steps: K, how many steps are predicted, each with a matrix of its own.
        skip: steps that are left out before the first, as a row of patches shares half of its pixels with the next.
        negatives: among what each latent is picked; see :func:`~sslmodules.contrastive.cpc_loss.future_cross_entropy`.
        num_negatives: draw so many of them; None takes all.
        score: ``"dot"`` product as in the paper, or ``"mean"``, that over the latents' length, as in the authors' later
            code.
        gather: also take negatives from other ranks.
        representation: of which the mean is the representation, ``"context"`` or ``"latents"``.
        in_channels: of the input; None is 1 of sound and 3 of the others.
        size: side of the views in pixels, of sound the samples of a window that is cut at random; None is all there is.
        min_scale: smallest share of an image's area that the random square covers.
        gray: whether images and video lose their colours.
        patch: side of the patches in pixels, even; None is a quarter of ``size``, so that there are 7x7.
        learning_rate: of Adam, taken as it is.

    Raises:
        ValueError: an unknown name, or a context network without ``num_features``.

    >>> method = CPC(encoder_args={"widths": [16] * 5}, context_args={"dim": 8}, steps=3)
    >>> sounds = 2 * torch.rand(4, 1, 3200) - 1
    >>> sorted(method.loss(method.make_views(sounds)))[:3]
    ['features', 'loss', 'prediction_accuracy']
    >>> method(sounds).shape, method.frames(sounds).shape
    (torch.Size([4, 8]), torch.Size([4, 20, 8]))
    """

    lr_batch_size = None
    input_kind: InputKind = "sound"

    def __init__(
        self,
        encoder: str | nn.Module = "cpc_audio",
        *,
        encoder_args: dict[str, Any] | None = None,
        input_kind: InputKind = "sound",
        context: str | nn.Module = "gru",
        context_args: dict[str, Any] | None = None,
        steps: int = 12,
        skip: int = 0,
        negatives: Negatives = "batch",
        num_negatives: int | None = None,
        score: Score = "dot",
        gather: bool = False,
        representation: Representation = "context",
        in_channels: int | None = None,
        size: int | None = None,
        min_scale: float = 0.73,
        gray: bool = True,
        patch: int | None = None,
        learning_rate: float = 2e-4,
        **kwargs: Any,
    ) -> None:
        if in_channels is None:
            in_channels = 1 if input_kind == "sound" else 3
        own = isinstance(encoder, str) and encoder in ENCODERS
        super().__init__(
            ENCODERS[encoder](in_channels, **(encoder_args or {})) if own else encoder,  # type: ignore[index]
            encoder_args=None if own else encoder_args,
            in_channels=in_channels,
            size=size,
            learning_rate=learning_rate,
            **kwargs,
        )
        for name, value, known in (
            ("input_kind", input_kind, InputKind),
            ("negatives", negatives, Negatives),
            ("score", score, Score),
            ("representation", representation, Representation),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(get_args(known))}")
        self.input_kind = input_kind
        if isinstance(context, str):
            if context not in CONTEXTS:
                raise ValueError(f"context is {context!r}, expected a module or one of {', '.join(CONTEXTS)}")
            context = CONTEXTS[context](self.feature_dim, **(context_args or {}))
        self.context = context
        context_dim: int = context.num_features  # type: ignore[assignment]
        self.predictor = nn.Linear(context_dim, steps * self.feature_dim, bias=False)  # K matrices
        self.steps = steps
        self.reported = sorted({*(2**i for i in range(steps.bit_length())), steps})
        self.skip = skip
        self.negatives: Negatives = negatives
        self.num_negatives = num_negatives
        self.temperature = float(self.feature_dim) if score == "mean" else 1.0
        self.gather = gather
        self.representation = representation
        if representation == "context":
            self.feature_dim = context_dim
        self.gray = gray
        self.patch = patch
        self.crop: Any = None if input_kind == "sound" else RandomSquareCrop(size, min_scale)

    @classmethod
    def audio(cls, encoder: str | nn.Module = "cpc_audio", **kwargs: Any) -> "CPC":
        """Sound, section 3.1 of the paper: these are the defaults."""
        return cls(encoder, **kwargs)

    @classmethod
    def image(cls, encoder: str | nn.Module = "cpc_resnet", **kwargs: Any) -> "CPC":
        """Images, section 3.3: 7x7 grey patches of 64 px, context from the top down, five rows ahead.

        The row below shares half of its pixels, and is left out. Small images: ``size=64`` or 32, with patches of 16 or
        8 px.

        >>> method = CPC.image("conv4", size=32)
        >>> method(torch.zeros(2, 3, 40, 40, dtype=torch.uint8)).shape
        torch.Size([2, 256])
        """
        recipe: dict[str, Any] = {
            "input_kind": "image",
            "context": "masked_rows",
            "steps": 5,
            "skip": 1,
            "representation": "latents",
            "size": 256,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
        }
        return cls(encoder, **{**recipe, **kwargs})

    @classmethod
    def video(cls, encoder: str | nn.Module = "resnet18", **kwargs: Any) -> "CPC":
        """Video: one latent a frame, three frames ahead.

        >>> method = CPC.video("conv4", size=16)
        >>> method(torch.zeros(2, 5, 3, 16, 16, dtype=torch.uint8)).shape
        torch.Size([2, 256])
        """
        recipe: dict[str, Any] = {
            "input_kind": "video",
            "steps": 3,
            "size": 128,
            "min_scale": 0.3,
            "gray": False,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
        }
        return cls(encoder, **{**recipe, **kwargs})

    def make_views(self, images: Tensor) -> list[Tensor]:
        """A random window of each sound, a random square of each clip or in patches; and draws (B, n) of negatives."""
        if self.input_kind == "sound":
            x = to_sound(images)
            x = x if self.size is None else random_windows(x, self.size, self.generator)
        elif self.input_kind == "image":
            x = self.normalize(self.crop(images, self.generator))
            patch = self.patch or x.shape[3] // 4
            x = overlapping_patches(x, patch, patch // 16, self.generator)  # 60 px of 64
        else:
            squares = self.crop(images.flatten(1, 2), self.generator)  # (B, T·C, S, S), the same of all frames
            frames = self.normalize(squares.unflatten(1, images.shape[1:3]).flatten(0, 1))
            x = frames.unflatten(0, images.shape[:2])
        if self.num_negatives is None:
            return [x]
        draws = torch.rand(len(x), self.num_negatives, generator=self.generator)
        return [x, draws.to(x.device, non_blocking=True)]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Cross-entropy of the latents to come, the mean over time and then over steps."""
        z = self.latents(views[0])
        c = self.context(z)
        terms = self.predict(z, c, views[1] if len(views) > 1 else None, gather=self.gather)
        accuracies = [correct.float().mean() for _, correct in terms]
        return {
            "loss": torch.stack([entropy.mean() for entropy, _ in terms]).mean(),
            "features": _mean(c if self.representation == "context" else z).detach(),
            "prediction_accuracy": torch.stack(accuracies).mean(),
            **{f"prediction_accuracy_{k}": accuracies[k - 1] for k in self.reported},
        }

    def predict(
        self, z: Tensor, c: Tensor, draws: Tensor | None = None, gather: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Cross-entropy and success of every prediction; see :func:`~.cpc_loss.future_cross_entropy`."""
        return future_cross_entropy(
            self.predictor(c).unflatten(-1, (self.steps, -1)),
            z,
            skip=self.skip,
            negatives=self.negatives,
            draws=draws,
            temperature=self.temperature,
            gather_ranks=gather,
        )

    def latents(self, x: Tensor) -> Tensor:
        """Latents of what :meth:`preprocess` gives: (B, T, D) of sounds and clips, (B, rows, columns, D) of patches."""
        if self.input_kind == "sound":
            return self.encoder(x)
        return pool(self.encoder(x.flatten(0, -4))).unflatten(0, x.shape[:-3])

    def frames(self, images: Tensor) -> Tensor:
        """Contexts (B, T, D) of what a loader yields, one for every latent; of an image's patches row by row."""
        return self.context(self.latents(self.preprocess(images))).flatten(1, -2)

    def encode(self, x: Tensor) -> Tensor:
        """Representation (B, D) of what :meth:`preprocess` gives."""
        z = self.latents(x)
        return _mean(self.context(z) if self.representation == "context" else z)

    @property
    def encoding_parts(self) -> dict[str, nn.Module]:
        """The encoder, and the context network where the representation is its."""
        return super().encoding_parts | ({"context": self.context} if self.representation == "context" else {})

    def encode_map(self, x: Tensor) -> Tensor:
        """Map (B, D, rows, columns) of an image's patches: their latents; of single frames the encoder's last map."""
        return self.latents(x).permute(0, 3, 1, 2) if self.input_kind == "image" else super().encode_map(x)

    def encode_stages(self, x: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """Maps of chosen stages: (B, C, rows, columns) of pooled patches; of clips (B, C, H, W), the mean of frames."""
        if self.input_kind == "sound":
            return super().encode_stages(x, stages)  # whose encoder has none
        maps = stage_maps(self.encoder, x.flatten(0, -4), stages)
        if self.input_kind == "image":
            return [pool(m).unflatten(0, x.shape[:-3]).permute(0, 3, 1, 2) for m in maps]
        return [m.unflatten(0, x.shape[:-3]).mean(1) for m in maps]

    def preprocess(self, images: Tensor) -> Tensor:
        """Make what :meth:`latents` eats: whole sounds, frames of clips, (B, rows, columns, C, p, p) of images."""
        if self.input_kind == "sound":
            return to_sound(images)
        x = super().preprocess(images.flatten(0, -4)).unflatten(0, images.shape[:-3])
        return overlapping_patches(x, self.patch or x.shape[3] // 4) if self.input_kind == "image" else x

    def normalize(self, images: Tensor) -> Tensor:
        """Take the colours away where there are to be none, subtract the mean and divide by the std."""
        return super().normalize(grayscale(images) if self.gray and has_colors(images) else images)

    def check_batch(self, batch: Any) -> None:
        """Refuse sequences that are too short to predict, besides what no method can train on."""
        super().check_batch(batch)
        images = unpack(batch).images
        if images is not None:
            with frozen(self):
                x = self.preprocess(images[:1])
                x = x[..., : self.size] if self.input_kind == "sound" else x
                require_horizon(self.latents(x).shape[1], self.skip, self.steps)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show one tile per sequence: how probable the right latent was, steps ahead downwards, time to the right.

        White is 1. It was picked among the latents of the sequences that are shown. Gray is what lies beyond the end.
        """
        z = self.latents(self._views(images)[0])
        terms = self.predict(z, self.context(z))
        length = z.shape[1]
        rows = [F.pad((-entropy).exp().mean(2), (0, length - entropy.shape[1]), value=0.5) for entropy, _ in terms]
        tile = torch.stack(rows, 1)  # (B, K, T)
        images = tile.repeat_interleave(max(1, length // (2 * self.steps)), 1)[:, None, None]
        return {"predicted": Tiles(images, ["probability of the right latent, steps ahead (down) by time (right)"])}


def _mean(sequence: Tensor) -> Tensor:
    """(B, T, D) or (B, rows, columns, D) to (B, D)."""
    return sequence.flatten(1, -2).mean(1)
