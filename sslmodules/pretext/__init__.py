"""Pretext tasks that classify what was done to an image."""

from sslmodules.pretext.rotation import Rotation

__all__ = ["Rotation"]
