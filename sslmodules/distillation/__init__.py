"""Self-distillation methods."""

from sslmodules.distillation.dino import DINO
from sslmodules.distillation.dinov2 import DINOv2

__all__ = ["DINO", "DINOv2"]
