"""Measuring what an encoder is worth."""

from sslmodules.evaluation.probe import ProbeResult, extract, probe

__all__ = ["ProbeResult", "extract", "probe"]
