"""Trained detectors at work on images."""

from gkd_fast.predict.prediction import predict_images

__all__ = ["predict_images"]
