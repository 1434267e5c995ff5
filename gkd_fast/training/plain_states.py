"""States of torch.distributed.checkpoint, read without running what their pickles ask for.

Its index is a pickle, and what is no tensor lies beside the tensors as pickles, which torch reads without a limit: both
are read here first, with nothing but the classes that such a state is made of.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem

_INDEX = {"torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"}
_OTHERS = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", f"{pure}{system}Path") for pure in ("", "Pure") for system in ("", "Posix", "Windows")),
    *(("pathlib._local", f"{pure}{system}Path") for pure in ("", "Pure") for system in ("", "Posix", "Windows")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _OTHERS:
            return super().find_class(module, name)
        if module in _INDEX and "." not in name:  # protocol 4 reads a dotted name attribute by attribute
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state is made of")


class PlainValues(DefaultLoadPlanner):
    """Values that are no tensors are numbers, texts and plain containers."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Read such a value.

        Raises:
            pickle.UnpicklingError: if it is anything else.
        """
        try:
            torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is neither tensor nor number nor text") from error
        value.seek(0)
        super().load_bytes(read_item, value)


def check_index(folder: Path) -> None:
    """Check that the index of a state holds nothing else.

    Raises:
        pickle.UnpicklingError: naming what it asks for.
    """
    for path in sorted(folder.glob("*.metadata")):
        with path.open("rb") as file:
            _Unpickler(file).load()
