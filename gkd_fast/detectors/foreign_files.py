"""Checkpoints of other libraries, read without running what a pickle asks for."""

from __future__ import annotations

import io
import pickle
import zipfile
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
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),  # pickles of protocol 5
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
        version: of mmdet, empty where the file has none.
        notes: what was left out, a sentence each.
    """

    state: dict[str, Tensor]
    classes: tuple[str, ...]
    description: str
    version: str = ""
    notes: tuple[str, ...] = ()


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
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        return type(name, (_Inert,), {})


def _storage(content: bytes) -> Any:
    """What a tensor in a plain pickle holds, which is a file of torch.save's."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


# What torch.load asks of a pickle module.
_PICKLE: Any = ModuleType("inert_pickle")
_PICKLE.Unpickler = _Unpickler
_PICKLE.load = lambda file, **options: _Unpickler(file, **options).load()


# Under which the weights of a network stand, in a file of a trainer.
_PLACES = ("state_dict", "model", "model_state_dict", "model_state")
_EXPECTED = "expected a checkpoint that torch.save or pickle wrote"
_ZIP, _PICKLE_START = b"PK\x03\x04", b"\x80"
_OTHER_STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS, whose file is not downloaded"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "a web page, or XML"),
)
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first object of torch's format before 1.6


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a checkpoint of mmdet, detectron2 or torchvision, whatever its suffix.

    torch.load with weights_only where it can; else, as for pickles, an unpickler that makes tensors, arrays and plain
    containers and puts an empty object in the place of everything else.

    Raises:
        InputError: if the file is missing, damaged, of another format, or holds no weights.
    """
    check_checkpoint(path)
    if what := _other_format(path):
        raise InputError(f"{path}: {what}; {_EXPECTED}")
    try:
        content = _content(path)
    except Exception as error:  # pickle and torch raise half a dozen types for a damaged file
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"{path}: expected a readable checkpoint; {reason}") from error
    if isinstance(content, _Inert):
        raise InputError(f"{path}: a whole {type(content).__name__}, pickled; expected its state_dict()")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a checkpoint with weights, got {type(content).__name__}")
    if "blobs" in content:
        raise InputError(f"{path}: a Caffe2 Detectron file; expected one of mmdet, detectron2 or torchvision")
    place = next((key for key in _PLACES if _tensors(content.get(key))), None)
    state = _tensors(content if place is None else content[place])
    if not state:
        raise InputError(f"{path}: {_without_weights(content)}")
    stored = content.get("meta")
    meta = stored if isinstance(stored, dict) else {}
    config = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    version = meta.get("mmdet_version")
    others = [f"{key} ({len(own)} tensors)" for key in content if key != place and (own := _tensors(content[key]))]
    notes = (f"took the weights under {place}, left out {', '.join(others)}",) * bool(place and others)
    return ForeignCheckpoint(state, _classes(meta), config, version if isinstance(version, str) else "", notes)


def _other_format(path: Path) -> str:
    """What a file is by its start, where it is nothing that torch or pickle wrote; else nothing."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.startswith(_ZIP):
        if not zipfile.is_zipfile(path):
            return "a damaged file, or one that is not downloaded to its end"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript archive"
        return (
            "" if any(name.endswith("data.pkl") for name in names) else f"a zip archive of {names[0] if names else ''}"
        )
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return "a safetensors file"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start.startswith(_PICKLE_START):
        return ""
    known = next((what for mark, what in _OTHER_STARTS if start.lstrip().startswith(mark)), "")
    return known or f"of an unknown format (suffix {path.suffix or 'none'}, first bytes {start[:4].hex(' ')})"


def _content(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(1) == _PICKLE_START:
            file.seek(0)
            content = _Unpickler(file, encoding="latin1").load()
            if content != _TORCH_MAGIC:
                return content
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)


def _without_weights(content: dict[Any, Any]) -> str:
    """What a file without weights is."""
    keys = ", ".join(list(map(str, content))[:8])
    whole = next((type(content[key]).__name__ for key in ("model", "ema") if isinstance(content.get(key), _Inert)), "")
    if "train_args" in content or "best_fitness" in content:
        return f"an Ultralytics file, which teaches through gkd_fast.Distiller; expected weights, found {keys}"
    if whole:
        return f"a whole {whole}, pickled; expected its state_dict(), found {keys}"
    return f"expected weights under {', '.join(_PLACES)} or alone; found {keys or 'nothing'}"


def _tensors(values: Any) -> dict[str, Tensor]:
    """The tensors of a dictionary by their names."""
    if not isinstance(values, dict):
        return {}
    return {name: _tensor(value) for name, value in values.items() if isinstance(name, str) and _is_tensor(value)}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    tensor = value.detach()
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
