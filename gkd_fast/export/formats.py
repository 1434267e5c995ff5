"""Formats that a detector is written in."""

from typing import Literal

Format = Literal["torchvision", "torch_export", "onnx"]
