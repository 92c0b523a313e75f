"""Contrastive methods."""

from sslmodules.contrastive.cpc import CPC
from sslmodules.contrastive.moco import MoCo
from sslmodules.contrastive.moco_v3 import MoCoV3
from sslmodules.contrastive.simclr import SimCLR

__all__ = ["CPC", "MoCo", "MoCoV3", "SimCLR"]
