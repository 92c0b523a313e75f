"""Measuring what an encoder is worth, and showing what it looks at."""

from sslmodules.evaluation.attention import (
    activation_attention,
    attention_tiles,
    class_attention,
    enlarged,
    mass_mask,
    pca_colors,
    shows_attention,
)
from sslmodules.evaluation.probe import ProbeResult, extract, probe

__all__ = [
    "ProbeResult",
    "activation_attention",
    "attention_tiles",
    "class_attention",
    "enlarged",
    "extract",
    "mass_mask",
    "pca_colors",
    "probe",
    "shows_attention",
]
