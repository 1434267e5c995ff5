"""Distilling object detectors with global knowledge: fused operators and a training engine."""

from gkd_fast import _checkout

__version__ = "0.1.0"

_checkout.add_kernels()
