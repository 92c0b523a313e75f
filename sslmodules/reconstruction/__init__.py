"""Reconstructing what was taken from an image: pixels, colours, patches."""

from sslmodules.reconstruction.colorization import Colorization
from sslmodules.reconstruction.inpainting import Inpainting
from sslmodules.reconstruction.mae import MAE
from sslmodules.reconstruction.split_brain import SplitBrain
from sslmodules.reconstruction.video_colorization import VideoColorization

__all__ = ["MAE", "Colorization", "Inpainting", "SplitBrain", "VideoColorization"]
