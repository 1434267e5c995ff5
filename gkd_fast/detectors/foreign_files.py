"""Checkpoints of other libraries, read without running what a pickle asks for."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.errors import InputError

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a checkpoint of another library holds.

    Attributes:
        state: weights by their names there, float32 (counters: int64).
        classes: class names, empty where the file has none.
        description: text of the configuration that the weights were trained with, empty where the file has none.
    """

    state: dict[str, Tensor]
    classes: tuple[str, ...]
    description: str


class _Inert:
    """In the place of every object of a class that is neither a tensor nor an array: holds nothing, does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        return type(name, (_Inert,), {})


# What torch.load asks of a pickle module.
_PICKLE: Any = ModuleType("inert_pickle")
_PICKLE.Unpickler = _Unpickler
_PICKLE.load = lambda file, **options: _Unpickler(file, **options).load()


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a checkpoint of mmdet (``.pth``) or detectron2 (``.pth`` or ``.pkl``).

    torch.load with weights_only where it can; else, as for ``.pkl`` files, an unpickler that makes tensors, arrays
    and plain containers and puts an empty object in the place of everything else.

    Raises:
        InputError: if the file is missing, damaged, or holds no weights.
    """
    check_checkpoint(path)
    try:
        content = _pickled(path) if path.suffix == ".pkl" else _archive(path)
    except Exception as error:  # pickle and torch raise half a dozen types for a damaged file
        raise InputError(f"{path}: expected a readable checkpoint; {str(error).partition(chr(10))[0]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a checkpoint with weights, got {type(content).__name__}")
    weights = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    state = {name: _tensor(value) for name, value in weights.items() if isinstance(value, (Tensor, np.ndarray))}
    if "blobs" in content:
        raise InputError(f"{path}: a Caffe2 Detectron file; expected one of mmdet, detectron2 or torchvision")
    if not state:
        keys = list(map(str, content))
        what = "an Ultralytics file, which teaches through gkd_fast.Distiller; " * ("train_args" in content)
        raise InputError(f"{path}: {what}expected weights under state_dict or model; found {', '.join(keys[:8])}")
    stored = content.get("meta")
    meta = stored if isinstance(stored, dict) else {}
    config = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    return ForeignCheckpoint(state, _classes(meta), config)


def _pickled(path: Path) -> Any:
    with path.open("rb") as file:
        return _Unpickler(file, encoding="latin1").load()


def _archive(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _classes(meta: dict[str, Any]) -> tuple[str, ...]:
    """mmdet 2.x: meta CLASSES; 3.x: meta dataset_meta classes (CLASSES in its first versions)."""
    stored = meta.get("dataset_meta")
    nested = stored if isinstance(stored, dict) else {}
    for place, key in ((meta, "CLASSES"), (nested, "classes"), (nested, "CLASSES")):
        names = place.get(key)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()
