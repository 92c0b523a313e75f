"""Reconstructing what was taken from an image: pixels, colours."""

from sslmodules.reconstruction.colorization import Colorization
from sslmodules.reconstruction.inpainting import Inpainting
from sslmodules.reconstruction.split_brain import SplitBrain

__all__ = ["Colorization", "Inpainting", "SplitBrain"]
