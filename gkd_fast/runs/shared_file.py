"""Finished detectors as safetensors: weights, and in the file's metadata what is needed to build their network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gkd_fast.errors import InputError

_KEY = "gkd_fast"


def write_shared(content: dict[str, Any], path: Path) -> None:
    """Write what a ``model.pt`` holds.

    Args:
        content: ``model``, the weights by name, and JSON types.
        path: of the file.

    Raises:
        InputError: if safetensors is not installed.
    """
    safetensors = _library()
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in content["model"].items()}
    rest = {name: value for name, value in content.items() if name != "model"}
    safetensors.save_file(weights, path, metadata={_KEY: json.dumps(rest), "format": "pt"})


def read_shared(path: Path) -> dict[str, Any]:
    """The inverse of `write_shared`.

    Raises:
        InputError: if safetensors is not installed.
    """
    safetensors = _library()
    with safetensors.safe_open(path, "pt") as file:
        rest = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        model: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return {**rest, "model": model}


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(".safetensors needs the package safetensors; pip install 'gkd_fast[hub]'") from error
    return safetensors.torch
