"""Results that are zeros instead of what memory happened to hold: for code whose sizes and indices are such results."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOVING = {"copy_", "_to_copy", "clone", "detach"}  # what the mock does carry out


class ZeroResults(TorchDispatchMode):
    """Within, on the mock, every new tensor of the device is zeros, but for copies of what the host wrote.

    An index is then within any length, and a coordinate a number; the device is not asked for anything more.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        if function._schema.name.split("::")[-1] in MOVING:
            return results
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.is_cuda and _storage(result) not in given and result.numel():
                ctypes.memset(_storage(result), 0, result.untyped_storage().nbytes())
        return results


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
