"""Colorization: tell the colours of an image from its lightness.

Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016. Grass is green and the sky is blue: to colour a grey
image, a network has to know what it shows. Colours are classes, since the mean of the colours that a thing may have is
grey, and rare, saturated ones count for more.
"""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.batch import unpack
from sslmodules.encoders import map_shape, pool
from sslmodules.module import SSLModule
from sslmodules.reconstruction.color_bins import NUM_BINS, annealed_mean, class_weights, soft_encode
from sslmodules.reconstruction.decoder import Decoder
from sslmodules.reconstruction.fitting import fit_before_training
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop, Resize, to_float
from sslmodules.views.lab import lab_to_rgb, lightness, rgb_to_lab, with_colors

STRIDE = 4  # of the pixels whose colour is predicted
MAX_IMAGES = 4096  # that colours are counted in
GREY = 5.0  # an image whose every |a| and |b| is at most this teaches no colour


class Colorization(SSLModule):
    """Colorful image colorization (Zhang et al. 2016). Defaults: ResNet-50, AdamW; codes and weights as released.

    The encoder sees the lightness alone: one channel, which is made of the RGB images that come in. At every fourth
    pixel one of 313 colours is predicted, with soft targets. Features come from the same lightness, so grey photographs
    do as well for them.

    As pretraining, hard targets without rebalancing are better (``neighbours=1, rebalance=None``): 32.4 % against
    31.0 % of ImageNet from AlexNet's conv3 (Zhang et al. 2017, "Split-Brain Autoencoders", Table 2). The defaults give
    the more colourful pictures.

    The authors dilate the last stages of their network in place of striding, so that its map stays at an eighth of the
    image. ``encoder_args={"output_stride": 8}`` does so with timm's ResNets; else the decoder enlarges the map more.
    They train with Adam, β = (0.9, 0.99), learning rate 3e-5 and weight decay 1e-3 on crops of 176 out of 256 px.

    Args:
        encoder: see :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here; as a module, it
            takes one channel. The stages before the last carry over best (``--probe.reads``).
        neighbours: nearest bins over which a colour is spread: 10 in the released layer, 5 in the paper, 1 is hard.
        rebalance: λ of the weights of rare colours, see :func:`~sslmodules.reconstruction.color_bins.class_weights`;
            None weighs all alike. With it, nearly grey images (a and b within ±5 everywhere) count 0, as in the
            authors' code. What is rare is found out before the first step, see :meth:`fit_prior`.
        temperature: of the decoded colours, see :func:`~sslmodules.reconstruction.color_bins.annealed_mean`.
        width: channels behind the encoder; each doubling of the side halves them, down to 128.
        min_scale: smallest share of the image's area that the crop covers; 0.47 is the authors' (176/256)². No colour
            is changed: it is the target.
        learning_rate: of AdamW, for a batch of 256; scaled in proportion to the global batch.
        weight_decay: of AdamW (ours).

    Raises:
        ValueError: images that are not RGB, a mean or std (the lightness is scaled to [-1, 1]), or an argument out of
            its range.

    >>> method = Colorization("conv4", width=32)
    >>> views = method.make_views(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    >>> [tuple(v.shape) for v in views], sorted(method.loss(views))
    ([(2, 1, 16, 16), (2, 2, 4, 4)], ['color_accuracy', 'features', 'loss'])
    """

    encoder_channels = 1
    reads_map = True
    specialised = True
    validation_measure = "loss"
    predicts_on = "whole"

    prior: Tensor
    prior_images: Tensor

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        neighbours: int = 10,
        rebalance: float | None = 0.5,
        temperature: float = 0.38,
        width: int = 256,
        min_scale: float = 0.47,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        require_rgb(self)
        if not 1 <= neighbours <= NUM_BINS or not (rebalance is None or 0 < rebalance <= 1) or not temperature > 0:
            raise ValueError(
                f"got neighbours={neighbours}, rebalance={rebalance} and temperature={temperature}; expected 1 to "
                f"{NUM_BINS} neighbours, a rebalance in (0, 1] or None, and a temperature above 0"
            )
        self.neighbours = neighbours
        self.rebalance = rebalance
        self.temperature = temperature
        self.view = RandomResizedCrop(self.size, scale=(min_scale, 1.0), interpolation="bilinear", flip=0.5)
        d, h, _ = map_shape(self.encoder, 1, self.size)
        self.decoder = Decoder(d, NUM_BINS, (self.size or 64) / STRIDE / h, width, min_width=128)
        # Until it is fitted, all colours are as common and weigh 1; both buffers are in the checkpoint.
        self.register_buffer("prior", torch.full((NUM_BINS,), 1 / NUM_BINS))
        self.register_buffer("prior_images", torch.tensor(0))

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Lightness of a crop, (B, 1, H, W) in [-1, 1], and the colours (a, b) of its pixels at stride 4.

        The colours, (B, 2, H/4, W/4) in units of L*a*b*, are picked and not averaged.
        """
        crops = self.view(images, self.generator)
        return [scaled_lightness(lightness(crops)), rgb_to_lab(crops[..., ::STRIDE, ::STRIDE])[:, 1:]]

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Cross-entropy ``-Σ v Σ_q Z log Ẑ`` of the colours' codes, averaged over all pixels of the batch.

        v is the weight of the pixel's nearest bin. Images that count 0 stay in the number that the sum is divided by,
        so that the losses of two halves of a batch average to that of the whole.
        """
        x, ab = views
        h = self.encode_map(x)  # (B, D, h, w)
        logits = self.decoder(h, ab.shape[-2:]).float()  # (B, 313, H/4, W/4)
        index, code = soft_encode(ab, self.neighbours)  # (B, k, H/4, W/4)
        losses = -(code * logits.log_softmax(1).gather(1, index)).sum(1)  # (B, H/4, W/4)
        if self.rebalance is not None:
            weight = class_weights(self.prior, self.rebalance)[index[:, 0]]  # (B, H/4, W/4)
            losses = losses * weight * (ab.abs() > GREY).any((1, 2, 3), keepdim=True)[:, 0]
        return {
            "loss": losses.mean(),
            "color_accuracy": (logits.argmax(1) == index[:, 0]).float().mean(),
            "features": pool(h).detach(),
        }

    def preprocess(self, images: Tensor) -> Tensor:
        """Lightness (B, 1, H, W) of images as a loader yields them, from [0, 100] to [-1, 1]."""
        return scaled_lightness(lightness(super().preprocess(images)))

    def check_images(self, images: Tensor) -> None:
        """Refuse what is not RGB, besides what no method can train on."""
        require_three_channels(self, images)
        super().check_images(images)

    # --- how common each colour is ----------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_prior(self, batches: Iterable[Any], max_images: int = MAX_IMAGES) -> None:
        """Count how common each of the 313 colours is, for the weights of rare ones.

        A run does so by itself before its first step, on images that are spread evenly over the training set, and keeps
        the result in its checkpoints. Call it before the run where the training set cannot be read ahead.

        Args:
            batches: what a loader yields.
            max_images: how many to read.

        Raises:
            ValueError: no image at all, or images that do not fit.

        >>> method = Colorization("conv4", width=32)
        >>> method.fit_prior([torch.full((4, 3, 16, 16), 90, dtype=torch.uint8)])
        >>> int(method.prior_images), method.prior.max().item()
        (4, 1.0)
        """
        counts = torch.zeros(NUM_BINS, dtype=torch.long, device=self.device)
        seen = 0
        for batch in batches:
            images, _, views = unpack(batch)
            if images is None:
                ab = views[1].to(self.device)  # type: ignore[index]
            else:
                self.check_images(images)
                pixels = images[: max_images - seen, :, ::STRIDE, ::STRIDE].to(self.device)
                ab = rgb_to_lab(self._undo(pixels))[:, 1:]
            counts += soft_encode(ab, 1)[0].flatten().bincount(minlength=NUM_BINS)
            seen += len(ab)
            if seen >= max_images:
                break
        if seen == 0:
            raise ValueError("there was no image to count colours in; pass batches as the training loader yields them")
        self.prior.copy_(counts / counts.sum())
        self.prior_images.fill_(seen)

    def on_train_start(self) -> None:
        """Count the colours of the training images, unless that was done: before the run, or before its checkpoint."""
        super().on_train_start()
        if self.rebalance is None or self.prior_images > 0:
            return
        rank_zero_info("counting the colours of the training images, to weigh rare ones up")
        instead = "call fit_prior(batches) before the run, or pass rebalance=None"
        fit_before_training(self, self.fit_prior, ["prior", "prior_images"], MAX_IMAGES, instead)

    # --- for the eye ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def colors(self, images: Tensor) -> Tensor:
        """Predict the colors of whole images from their lightness. In eval mode, as predicting.

        With a ``size``, the network sees the image scaled until its shorter side has it. The aspect ratio stays, up to
        whole patches; for encoders that take squares alone (such as Swin transformers) the image is squashed to one.

        Args:
            images: (B, 3, H, W) as a loader yields them; gray ones have equal channels.

        Returns:
            a and b in units of L*a*b*, fp32 (B, 2, ⌈h/4⌉, ⌈w/4⌉) of the size h, w that the network saw.
        """
        rgb = to_float(self._undo(images))
        height, width = self._seen(*rgb.shape[-2:])
        if (height, width) != rgb.shape[-2:]:
            rgb = Resize((height, width))(rgb)
        h = self.encode_map(scaled_lightness(lightness(rgb)))
        logits = self.decoder(h, (-(-height // STRIDE), -(-width // STRIDE)))
        return annealed_mean(logits, self.temperature)

    def _seen(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the network sees an image."""
        patches: Any = getattr(self.encoder, "patch_embed", None)
        if getattr(patches, "strict_img_size", False):
            return patches.img_size
        scale = 1.0 if self.size is None else self.size / min(height, width)
        h, w = getattr(patches, "patch_size", (1, 1))
        return max(1, round(scale * height / h)) * h, max(1, round(scale * width / w)) * w

    def colorize(self, images: Tensor) -> Tensor:
        """Color images: their own lightness with the colors that :meth:`colors` predicts.

        Args:
            images: (B, 3, H, W) as a loader yields them.

        Returns:
            fp32 (B, 3, H, W) in [0, 1].
        """
        return with_colors(self._undo(images), self.colors(images))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """``"features"`` of the central squares, ``"labels"``, ``"colors"`` of the whole images, and ``"pictures"``.

        The last are the images in these colors, (B, 3, H, W) in [0, 1]. For images that were read from files,
        :class:`~sslmodules.callbacks.PictureWriter` puts the colors onto the pictures at their full size.
        """
        images, labels, _ = unpack(batch)
        if images is None:
            return super().predict_step(batch, batch_idx, dataloader_idx)  # and its sentence
        side = min(images.shape[-2:])
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        square = images[..., top : top + side, left : left + side]
        predicted = super().predict_step([square, labels], batch_idx, dataloader_idx)
        colors = self.colors(images)
        return {**predicted, "colors": colors, "pictures": with_colors(self._undo(images), colors)}

    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show one row per image: its lightness, all that the network sees; the predicted colors; the true ones."""
        rgb = to_float(self._undo(images))
        grey = lab_to_rgb(F.pad(lightness(rgb), (0, 0, 0, 0, 0, 2)))
        shown = torch.stack([grey, self.colorize(images), rgb], 1)
        return {"colours": Tiles(shown, ["lightness", "predicted colors", "true colors"])}


def require_rgb(module: SSLModule) -> None:
    """Refuse a module whose arguments say that its images are not RGB, or that its input is normalised otherwise."""
    if module.in_channels != 3:
        raise ValueError(
            f"{type(module).__name__} learns from the colours of RGB images, got in_channels={module.in_channels}; "
            "leave in_channels at 3 and let the loader convert the images"
        )
    if module.mean is not None:
        raise ValueError(
            f"{type(module).__name__} scales lightness and colours by itself, got mean={module.mean}; leave mean and "
            "std out, and pass undo_normalization where the loader normalises"
        )


def require_three_channels(module: SSLModule, images: Tensor) -> None:
    """Refuse a batch of images (B, C, H, W) that is not RGB."""
    if images.ndim == 4 and images.shape[1] != 3:
        raise ValueError(
            f"the images have {images.shape[1]} channels, {type(module).__name__} takes RGB; let the loader convert "
            'them (ImageFolder: mode="RGB")'
        )


def scaled_lightness(lightness: Tensor) -> Tensor:
    """L from [0, 100] to [-1, 1], of any shape."""
    return (lightness - 50) / 50
