"""Measuring what an encoder is worth."""

from sslmodules.evaluation.probe import ProbeResult, extract, probe, probe_stages

__all__ = ["ProbeResult", "extract", "probe", "probe_stages"]
