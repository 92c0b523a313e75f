"""The anchor of DINOv3's Gram loss: an earlier teacher that says how the patches of an image relate to each other."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.distillation.base import without_noise
from sslmodules.distillation.losses import gram_loss
from sslmodules.encoders import ViT, last_map


class GramAnchor(nn.Module):
    """A frozen encoder that the similarities of a student's patches are held to (Siméoni et al. 2025, section 4).

    In long runs the features of patches lose their places while those of images still gain. The patches of an earlier
    teacher had them, and more so in larger images: their map is made smaller to the student's, which smooths it.

    Args:
        encoder: copied; its patches are those of its last map.

    >>> vit = ViT(patch_size=4, embed_dim=24, depth=1, num_heads=2, img_size=16, dynamic_img_size=True)
    >>> anchor, x = GramAnchor(vit), torch.rand(2, 3, 16, 16)
    >>> round(anchor(last_map(vit, x), x).item(), 6), anchor(torch.rand(2, 24, 4, 4), torch.rand(2, 3, 32, 32)) > 0
    (0.0, tensor(True))
    """

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    def forward(self, student: Tensor, images: Tensor) -> Tensor:
        """Gram loss of the student's map (B, D, h, w), given the same images (B, C, H, W) at this or a larger size."""
        with torch.no_grad(), without_noise(self.encoder):
            anchor = last_map(self.encoder, images)  # (B, D, h', w')
            if anchor.shape[-2:] != student.shape[-2:]:
                size = student.shape[-2:]
                anchor = F.interpolate(anchor.float(), size, mode="bicubic", antialias=True, align_corners=False)
        return gram_loss(student.flatten(2).mT, anchor.flatten(2).mT)

    def take(self, encoder: ViT) -> None:
        """Take over the weights of an encoder of the same kind."""
        self.encoder.load_state_dict(encoder.state_dict())
