"""Tensors that follow from sizes alone, made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

T = TypeVar("T")
_MOST = 256  # a run has as many sizes as size buckets, times a few constants each
_known: dict[Hashable, object] = {}


def remembered(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives, which depends on nothing but the key; nothing of it may be changed.

    Where there are too many, the oldest one is forgotten. A compiled graph holds what it needs itself.
    """
    if torch.compiler.is_compiling():
        return make()
    if key not in _known:
        if len(_known) >= _MOST:
            del _known[next(iter(_known))]
        with torch.inference_mode(False), torch.no_grad():
            _known[key] = make()
    return _known[key]  # type: ignore[return-value]
