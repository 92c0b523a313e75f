"""Split-brain autoencoder: one half of a network tells colours from lightness, the other lightness from colours.

Zhang, Isola, Efros, "Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction", CVPR 2017. No half
sees what it has to predict, so neither can copy; together they have seen the whole image. What is kept is both halves,
side by side.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.encoders import create_encoder, last_map, map_shape, pool, stage_maps
from sslmodules.module import SSLModule
from sslmodules.reconstruction.color_bins import NUM_BINS, annealed_mean, soft_encode
from sslmodules.reconstruction.colorization import require_rgb, require_three_channels
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop
from sslmodules.views.lab import lab_to_rgb, rgb_to_lab

LIGHTNESS_BINS = 50
BIN_WIDTH = 2  # in units of L


class SplitEncoder(nn.Module):
    """Two encoders that share nothing: one reads the first channel, the other the rest; what they give is concatenated.

    Args:
        lightness: encoder of one channel: any that :func:`sslmodules.encoders.last_map` reads.
        color: encoder of two channels, whose maps are as large.
        image_size: side of the images in pixels, where the encoders are built for one.

    Raises:
        ValueError: an encoder that takes other channels or gives no map, or maps of different sizes.

    >>> encoder = SplitEncoder(create_encoder("conv4", 1), create_encoder("conv4", 2))
    >>> encoder.widths, encoder(torch.zeros(2, 3, 16, 16)).shape
    ((256, 256), torch.Size([2, 512]))
    """

    def __init__(self, lightness: nn.Module, color: nn.Module, image_size: int | None = None) -> None:
        super().__init__()
        shapes = map_shape(lightness, 1, image_size), map_shape(color, 2, image_size)
        if shapes[0][1:] != shapes[1][1:]:
            raise ValueError(
                "the maps of lightness and of colour are {1}x{2} and {4}x{5}; pass two encoders of one kind".format(
                    *shapes[0], *shapes[1]
                )
            )
        self.lightness = lightness
        self.color = color
        self.widths = shapes[0][0], shapes[1][0]  # d1, d2
        self.num_features = sum(self.widths)

    @property
    def patch_embed(self) -> Any:
        """Of a transformer, for the check that images are cut into whole patches; None of any other encoder."""
        return getattr(self.lightness, "patch_embed", None)

    def forward_features(self, x: Tensor) -> Tensor:
        """Last maps (B, d1 + d2, h, w) of images (B, 3, H, W), lightness first."""
        return torch.cat([last_map(self.lightness, x[:, :1]), last_map(self.color, x[:, 1:])], 1)

    def forward_intermediates(self, x: Tensor, intermediates_only: bool = True) -> list[Tensor]:
        """Maps of each stage, the two encoders' side by side."""
        both = zip(stage_maps(self.lightness, x[:, :1]), stage_maps(self.color, x[:, 1:]), strict=True)
        return [torch.cat(maps, 1) for maps in both]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, d1 + d2): the mean of the last maps."""
        return pool(self.forward_features(x))


class SplitBrain(SSLModule):
    """Split-brain autoencoder (Zhang et al. 2017). Defaults: two ResNet-50, classification, AdamW.

    The paper halves the width of AlexNet, so that both halves together are as wide as one. A *named* encoder is taken
    twice at its full width: the features are twice as long, to be said beside any result. Half as wide are
    ``encoder_args={"widths": [16, 32, 64, 128]}`` of ``conv4``, ``{"channels": [32, 64, 128, 256]}`` of timm's ResNets
    (but for their stem), and half the ``embed_dim`` and ``num_heads`` of a transformer.

    The paper predicts maps of 12x12 from crops of 180 px; here, maps as large as the encoder's last.
    ``encoder_args={"output_stride": 16}`` keeps those of timm's ResNets at a sixteenth of the image, about as fine.

    Args:
        encoder: a name, for both halves; or a :class:`SplitEncoder` of two modules. See
            :class:`~sslmodules.SSLModule`, also for the arguments that are not listed here. The stages before the last
            carry over best (``--probe.reads``).
        encoder_args: further arguments of a named encoder, for both halves.
        size: side of the views in pixels; None makes them as large as the images that come in.
        task: ``"classification"`` into 313 colours and 50 lightnesses, which carries over better than
            ``"regression"`` (35.4 % against 33.6 % from conv3, Table 2).
        hidden_dim: width of the heads' hidden layer; None is that of the encoder's map.
        min_scale: smallest share of the image's area that the crop covers; 0.49 is the authors' (180/256)².
        learning_rate: of AdamW, for a batch of 256; scaled in proportion to the global batch (ours).
        weight_decay: of AdamW (ours).

    Raises:
        ValueError: an encoder that is no pair, or does not fit, images that are not RGB, a mean or std (lightness and
            colours are scaled to [-1, 1]), or an unknown task.

    >>> method = SplitBrain("conv4", encoder_args={"widths": [8, 16]})
    >>> views = method.make_views(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    >>> method.feature_dim, sorted(method.loss(views))
    (32, ['color_accuracy', 'features', 'lightness_accuracy', 'loss'])
    """

    reads_map = True
    specialised = True
    validation_measure = "loss"

    encoder: SplitEncoder

    def __init__(
        self,
        encoder: str | SplitEncoder = "resnet50",
        *,
        encoder_args: dict[str, Any] | None = None,
        size: int | None = None,
        task: Literal["classification", "regression"] = "classification",
        hidden_dim: int | None = None,
        min_scale: float = 0.49,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        **kwargs: Any,
    ) -> None:
        # The base reads the arguments; what it is given in the encoder's place makes way for the two halves below.
        super().__init__(nn.Identity(), size=size, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        require_rgb(self)
        if isinstance(encoder, str):
            lightness, color = (create_encoder(encoder, channels, size, **(encoder_args or {})) for channels in (1, 2))
            encoder = SplitEncoder(lightness, color, size)
        elif not isinstance(encoder, SplitEncoder):
            raise ValueError(
                f"encoder is a {type(encoder).__name__}; pass a name, or two encoders of your own as "
                "SplitEncoder(lightness, color)"
            )
        self.encoder = encoder
        self.feature_dim = encoder.num_features
        if task not in ("classification", "regression"):
            raise ValueError(f"task is {task!r}; expected 'classification' or 'regression'")
        self.task = task
        self.view = RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation="bilinear", flip=0.5)
        outputs = (NUM_BINS, LIGHTNESS_BINS) if task == "classification" else (2, 1)
        d1, d2 = self.encoder.widths
        self.color_from_lightness = _head(d1, hidden_dim or d1, outputs[0])
        self.lightness_from_color = _head(d2, hidden_dim or d2, outputs[1])

    def make_views(self, images: Tensor) -> list[Tensor]:
        """A crop of each image in L*a*b*, scaled to [-1, 1]: (B, 3, H, W). The targets are made of it too."""
        return [_scaled(rgb_to_lab(self.view(images, self.generator)))]

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's map (B, d1 + d2, h, w) of scaled L*a*b*, and what the heads say of colour and lightness."""
        h = self.encode_map(x)
        from_lightness, from_color = h.split(self.encoder.widths, 1)
        return h, self.color_from_lightness(from_lightness).float(), self.lightness_from_color(from_color).float()

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Sum of both halves' losses, each averaged over images and positions of the map.

        The target of a position is the mean of its cell of the image, in L*a*b*: one pixel of a cell of 16x16 or 32x32
        would be chance. Classification takes the cross-entropy; regression half the squared distance, in scaled units.
        """
        (x,) = views
        h, color, lightness = self.predict(x)
        true_color, true_lightness = self.targets(x, (h.shape[2], h.shape[3]))
        if self.task == "regression":
            off_color, off_lightness = color - true_color, lightness - true_lightness
            return {
                "loss": 0.5 * (off_color.square().sum(1).mean() + off_lightness.square().mean()),
                "color_error": 110 * off_color.detach().norm(dim=1).mean(),
                "lightness_error": 50 * off_lightness.detach().abs().mean(),
                "features": pool(h).detach(),
            }
        return {
            "loss": F.cross_entropy(color, true_color) + F.cross_entropy(lightness, true_lightness),
            "color_accuracy": (color.argmax(1) == true_color).float().mean(),
            "lightness_accuracy": (lightness.argmax(1) == true_lightness).float().mean(),
            "features": pool(h).detach(),
        }

    def targets(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Colour and lightness that scaled L*a*b* images (B, 3, H, W) have in each cell of a map of ``size`` (h, w).

        Returns:
            Numbers of the bins, (B, h, w) both; or (B, 2, h, w) and (B, 1, h, w) in scaled units for regression.
        """
        cells = F.adaptive_avg_pool2d(x, size)  # (B, 3, h, w)
        if self.task == "regression":
            return cells[:, 1:], cells[:, :1]
        cells = _unscaled(cells)
        return soft_encode(cells[:, 1:], neighbours=1)[0][:, 0], lightness_bins(cells[:, 0])

    def preprocess(self, images: Tensor) -> Tensor:
        """Images as a loader yields them, in L*a*b* scaled to [-1, 1]: (B, 3, H, W)."""
        return _scaled(rgb_to_lab(super().preprocess(images)))

    def check_images(self, images: Tensor) -> None:
        """Refuse what is not RGB, besides what no method can train on."""
        require_three_channels(self, images)
        super().check_images(images)

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show for each half what it sees, what it predicts and the truth. Colors alone are shown at L = 60."""
        x = self.preprocess(images)
        _, color, lightness = self.predict(x)
        if self.task == "classification":
            centres = BIN_WIDTH * torch.arange(0.5, LIGHTNESS_BINS, device=x.device).view(-1, 1, 1)
            color, lightness = annealed_mean(color), (lightness.softmax(1) * centres).sum(1, keepdim=True)
        else:
            lightness, color = _unscaled(torch.cat([lightness, color], 1)).split([1, 2], 1)
        lab = _unscaled(x)
        color, lightness = (
            F.interpolate(predicted, x.shape[-2:], mode="bilinear", align_corners=False)
            for predicted in (color, lightness)
        )
        no_color, no_lightness = torch.zeros_like(color), torch.full_like(lightness, 60.0)

        def row(*columns: tuple[Tensor, Tensor]) -> Tensor:
            return torch.stack([lab_to_rgb(torch.cat(column, 1)) for column in columns], 1)

        true_lightness, true_color = lab.split([1, 2], 1)
        return {
            "colours from lightness": Tiles(
                row((true_lightness, no_color), (true_lightness, color), (true_lightness, true_color)),
                ["lightness", "predicted colors", "true colors"],
            ),
            "lightness from colours": Tiles(
                row((no_lightness, true_color), (lightness, no_color), (true_lightness, no_color)),
                ["colors", "predicted lightness", "true lightness"],
            ),
        }


def lightness_bins(lightness: Tensor) -> Tensor:
    """Number of the bin of width 2, ``min(⌊L / 2⌋, 49)``, int64 of any shape; L in [0, 100].

    >>> lightness_bins(torch.tensor([0.0, 1.9, 2.0, 99.0, 100.0])).tolist()
    [0, 0, 1, 49, 49]
    """
    return (lightness / BIN_WIDTH).floor().long().clamp(0, LIGHTNESS_BINS - 1)  # black may be -1e-6


def _scaled(lab: Tensor) -> Tensor:
    return torch.cat([(lab[:, :1] - 50) / 50, lab[:, 1:] / 110], 1)


def _unscaled(x: Tensor) -> Tensor:
    return torch.cat([50 * x[:, :1] + 50, 110 * x[:, 1:]], 1)


def _head(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 1),
    )
