"""Distilling object detectors with global knowledge: fused operators and a training engine."""

__version__ = "0.1.0"
