"""The papers' recipes for a view. Each returns a module: images in, one view out.

Values stay in [0, 1]: mean and std belong to what the encoder eats, and the method (or a `Normalize` behind) takes care
of them. Flips stand in the crop, where they cost nothing; mirroring commutes with every step that follows, so the
distribution is the recipe's.
"""

from sslmodules.views.geometry import GaussianBlur, RandomResizedCrop, Resize
from sslmodules.views.jitter import ColorJitter, RandomGrayscale
from sslmodules.views.transforms import Compose, Identity, RandomSolarize, Transform

# MoCo blurs with PIL's `GaussianBlur`, three box filters that at the greatest sigma, 2, reach 6 pixels to each side.
# 13 pixels are those, and three sigmas: the Gaussian beyond weighs 0.3 %.
PIL_KERNEL_SIZE = 13


def simclr(
    size: int | tuple[int, int] | None = None,
    strength: float = 1.0,
    blur: float = 0.5,
    min_scale: float = 0.08,
) -> Compose:
    """Return SimCLR's view (Chen et al. 2020, arXiv:2002.05709, appendix A). Call it twice for a pair.

    Crop (bicubic, as in the authors' code), flip 0.5, jitter 0.8 with strengths (0.8, 0.8, 0.8, 0.2), grey 0.2, blur.
    For CIFAR, appendix B.9: `strength=0.5, blur=0`.

    Args:
        size: Height and width of the view; `None` for those of the incoming images.
        strength: Multiplies the jitter's strengths.
        blur: Probability of blurring, sigma 0.1 to 2 with a kernel of a tenth of the side.
        min_scale: Least area of the crop.

    Example:
        >>> import torch
        >>> view = simclr(strength=0.5, blur=0.0)
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> first, second = view(images), view(images)
        >>> first.shape
        torch.Size([4, 3, 32, 32])
    """
    return Compose(
        RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation="bicubic", flip=0.5),
        ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        RandomGrayscale(p=0.2),
        GaussianBlur(p=blur),
    )


def moco_v1(size: int | tuple[int, int] | None = 224) -> Compose:
    """Return MoCo v1's view (He et al. 2020, arXiv:1911.05722; `main_moco.py` of the authors). Call it twice.

    Crop of area 0.2 to 1 (bilinear), grey 0.2, then jitter of strength 0.4 in all four properties for every image, flip
    0.5. The authors normalise at the end; here the method does.

    Example:
        >>> import torch
        >>> moco_v1(size=16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 16, 16])
    """
    return Compose(
        RandomResizedCrop(size, scale=(0.2, 1.0), interpolation="bilinear", flip=0.5),
        RandomGrayscale(p=0.2),
        ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0),
    )


def moco_v2(size: int | tuple[int, int] | None = 224, kernel_size: int | None = PIL_KERNEL_SIZE) -> Compose:
    """Return MoCo v2's view (Chen et al. 2020, arXiv:2003.04297; `main_moco.py` with `--aug-plus`). Call it twice.

    Crop of area 0.2 to 1 (bilinear), jitter 0.8 with strengths (0.4, 0.4, 0.4, 0.1), grey 0.2, blur 0.5 with sigma 0.1
    to 2, flip 0.5. The authors normalise at the end; here the method does.

    Args:
        size: Height and width of the view; `None` for those of the incoming images.
        kernel_size: Pixels that the blur spans. The authors use PIL's blur, which has no such number; 13 covers it.

    Example:
        >>> import torch
        >>> moco_v2(size=16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 16, 16])
    """
    return Compose(
        RandomResizedCrop(size, scale=(0.2, 1.0), interpolation="bilinear", flip=0.5),
        ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        RandomGrayscale(p=0.2),
        GaussianBlur(kernel_size=kernel_size, p=0.5),
    )


def byol_colors(blur: float, solarize: float, kernel_size: int | None = PIL_KERNEL_SIZE) -> list[Transform]:
    """Return what BYOL's views, and those of MoCo v3 and DINO, have behind the crop (Grill et al. 2020, appendix B).

    Jitter 0.8 with strengths (0.4, 0.4, 0.2, 0.1), grey 0.2, blur, solarise.

    Args:
        blur: Probability of blurring.
        solarize: Probability of solarising.
        kernel_size: Pixels that the blur spans; `None` is a tenth of the shorter side.

    Example:
        >>> [type(part).__name__ for part in byol_colors(blur=0.1, solarize=0.2)]
        ['ColorJitter', 'RandomGrayscale', 'GaussianBlur', 'RandomSolarize']
    """
    return [
        ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        RandomGrayscale(p=0.2),
        GaussianBlur(kernel_size=kernel_size, p=blur),
        RandomSolarize(p=solarize),
    ]


def moco_v3(
    size: int | tuple[int, int] | None = 224, min_scale: float = 0.08, kernel_size: int | None = PIL_KERNEL_SIZE
) -> tuple[Compose, Compose]:
    """Return MoCo v3's two views, which differ as BYOL's (Chen et al. 2021, arXiv:2104.02057; BYOL, appendix B).

    Both: crop (bilinear), jitter 0.8 with strengths (0.4, 0.4, 0.2, 0.1), grey 0.2, flip 0.5. The first is always
    blurred; the second is blurred with probability 0.1 and solarised with 0.2. The authors normalise at the end; here
    the method does.

    Args:
        size: Height and width of the views; `None` for those of the incoming images.
        min_scale: Least area of the crop; the authors use 0.2 for ResNet-50 and 0.08 for ViT.
        kernel_size: Pixels that the blur spans. The authors use PIL's blur, which has no such number; 13 covers it.

    Example:
        >>> import torch
        >>> first, second = moco_v3(size=16)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> first(images).shape == second(images).shape
        True
    """

    def view(blur: float, solarize: float) -> Compose:
        crop = RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation="bilinear", flip=0.5)
        return Compose(crop, *byol_colors(blur, solarize, kernel_size))

    return view(blur=1.0, solarize=0.0), view(blur=0.1, solarize=0.2)


def identity(size: int | tuple[int, int] | None = None) -> Transform:
    """Return the view that changes nothing but the type, and the size if one is given.

    Example:
        >>> import torch
        >>> identity(size=16)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([1, 3, 16, 16])
    """
    return Identity() if size is None else Resize(size)
