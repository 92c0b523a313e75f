"""Pretext tasks that classify what was done to an image."""

from sslmodules.pretext.jigsaw import Jigsaw
from sslmodules.pretext.relative_patch import RelativePatch
from sslmodules.pretext.rotation import Rotation

__all__ = ["Jigsaw", "RelativePatch", "Rotation"]
