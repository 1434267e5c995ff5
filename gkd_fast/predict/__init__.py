"""Trained detectors at work on images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.predict.prediction import predict_images

__all__ = ["predict_images"]

__getattr__, __dir__ = lazily(__name__, {"prediction": "predict_images"})
