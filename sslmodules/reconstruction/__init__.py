"""Reconstructing what was taken from an image: pixels, colours."""
