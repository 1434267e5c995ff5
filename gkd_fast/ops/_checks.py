"""Argument checks shared by the operators: types, shapes, devices; no check waits for a device."""

from collections.abc import Sequence

import torch
from torch import Tensor

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 when any input is float64, otherwise float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_tensor(name: str, value: Tensor, shape: str, dtype: torch.dtype | None = None) -> None:
    """Check a tensor's dtype (any floating one if None) and that it has the dimensions that `shape` names."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(value).__name__}")
    allowed = _FLOATING if dtype is None else (dtype,)
    if value.dtype not in allowed:
        expected = " or ".join(str(d) for d in allowed)
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")
    if value.dim() != shape.count(",") + 1:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")


def check_size(name: str, dimension: str, got: int, expected: int) -> None:
    """Check one length against the length that another argument implies."""
    if got != expected:
        raise ValueError(f"{name}: expected {dimension} = {expected}, got {got}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check a string option."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_same_device(**tensors: Tensor) -> None:
    """Check that all tensors lie on the device of the first."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise ValueError(f"{name}: expected device {first.device} as {first_name}, got {tensor.device}")


def check_features(name: str, features: Sequence[Tensor]) -> None:
    """Check a pyramid: a non-empty list of [N,C,H,W] maps that agree in N, C, dtype and device."""
    if isinstance(features, Tensor) or not isinstance(features, Sequence):
        raise TypeError(f"{name}: expected a list of tensors [N,C,H,W], got {type(features).__name__}")
    if len(features) == 0:
        raise ValueError(f"{name}: expected at least one level, got an empty list")
    if _agree(features):
        return
    for level, feature in enumerate(features):
        label = f"{name}[{level}]"
        check_tensor(label, feature, "[N,C,H,W]", features[0].dtype if level else None)
        check_size(label, "N", feature.shape[0], features[0].shape[0])
        check_size(label, "C", feature.shape[1], features[0].shape[1])
        if feature.device != features[0].device:
            raise ValueError(f"{label}: expected device {features[0].device}, got {feature.device}")
        if feature.shape[2] == 0 or feature.shape[3] == 0:
            raise ValueError(f"{label}: expected at least one cell, got a map of {tuple(feature.shape[2:])}")


def _agree(features: Sequence[Tensor]) -> bool:
    """Whether nothing has to be said of the maps: a pyramid is looked at by every operator in every step."""
    first = features[0]
    if not isinstance(first, Tensor) or first.dtype not in _FLOATING or first.dim() != 4:
        return False
    (images, channels, _, _), dtype, device = first.shape, first.dtype, first.device
    for feature in features:
        if not isinstance(feature, Tensor) or feature.dtype != dtype or feature.device != device:
            return False
        shape = feature.shape
        if len(shape) != 4 or shape[0] != images or shape[1] != channels or shape[2] == 0 or shape[3] == 0:
            return False
    return True


def check_boxes(features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> None:
    """Check boxes [B,4] float32 and image_index [B] int64, on the device of the features."""
    check_tensor("boxes", boxes, "[B,4]", torch.float32)
    check_size("boxes", "last dimension", boxes.shape[1], 4)
    check_tensor("image_index", image_index, "[B]", torch.int64)
    check_size("image_index", "B", image_index.shape[0], boxes.shape[0])
    check_same_device(features=features[0], boxes=boxes, image_index=image_index)


def check_strides(strides: Sequence[float], levels: int) -> None:
    """Check one positive stride a level."""
    check_size("strides", "levels", len(strides), levels)
    for stride in strides:
        if not stride > 0:
            raise ValueError(f"strides: expected positive numbers, got {tuple(strides)}")
