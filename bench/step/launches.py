"""How many kernels a step launches and how often its host waits for the device, counted on any device."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Results, or sizes of results, that depend on data: torchvision's and torch's operators that copy them to the host.
_READING = {"_local_scalar_dense", "is_nonzero", "equal", "nms", "bincount", "histc", "multinomial"}
_SIZED_BY_DATA = {"nonzero", "argwhere", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"}
WAITING = frozenset(_READING | _SIZED_BY_DATA)
_ALLOCATING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel on a GPU, and those for which its host waits.

    Views, and memory that nothing is written to, launch nothing. Any other operator counts once, although some (such
    as sorting) launch several kernels. An operator of this package counts once as well.

    Attributes:
        kernels: by the name of the operator.
        detector: how many of them lie between backbone and losses.
        waits: the operators that wait, with the files and lines that called them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.detector = 0
        self.waits: list[str] = []
        self._in_detector = False

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if _launches(function, name, result):
            self.kernels[name] += 1
            self.detector += self._in_detector
        if waits(function, args, kwargs):
            own = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
            self.waits.append(f"{name}: {own[-1].filename}:{own[-1].lineno}")
        return result

    @contextmanager
    def between_backbone_and_losses(self) -> Iterator[None]:
        """Count what runs within as the detector's own; what runs in `outside_detector` within is none of it."""
        before, self._in_detector = self._in_detector, True
        try:
            yield
        finally:
            self._in_detector = before

    @contextmanager
    def outside_detector(self) -> Iterator[None]:
        """See `between_backbone_and_losses`."""
        before, self._in_detector = self._in_detector, False
        try:
            yield
        finally:
            self._in_detector = before


def waits(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> bool:
    """Whether the host of a GPU waits in an operator, as far as a CPU shows it."""
    name = function.overloadpacket.__name__
    if name == "repeat_interleave":
        return (kwargs or {}).get("output_size") is None
    return name in WAITING or _indexes_by_mask(name, args)


def _launches(function: Any, name: str, result: Any) -> bool:
    if name in _ALLOCATING:
        return False
    if function._schema.is_mutable:
        return True
    aliases = [returned.alias_info is not None for returned in function._schema.returns]
    return not any(aliases) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))


def _indexes_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    if name not in ("index", "index_put", "index_put_"):
        return False
    masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    # A fill under a mask has no size that depends on data.
    return masks and not (name != "index" and args[2].numel() == 1)
