"""Tensors that say they lie on cuda:0 and compute on the CPU: what a device path does is seen, with right values.

Every operator that touches such a tensor is looked at before it runs. Found are tensors of both devices in one
operator, waits of the host, results in float64, and products in float32, which mixed precision is to make rare. The
process runs on the mock device, for torch keeps streams and events for cuda:0.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import gkd_fast

CUDA = torch.device("cuda", 0)
HERE = Path(__file__)
CODE = Path(gkd_fast.__file__).parent
# Results whose size, or whose very value, the host has to know.
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "equal"}
WAITING |= {"_local_scalar_dense", "is_nonzero", "nms"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
MOVING = {"copy_", "_to_copy", "_copy_from"}
PRODUCTS = {"convolution", "mm", "bmm", "addmm", "baddbmm"}


class Finding(NamedTuple):
    """What was found, in which operator, and the innermost place of the code that is looked at."""

    kind: str
    operator: str
    place: str


class Pretended(Tensor):
    """Says cuda:0; `on_cpu` holds its numbers."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> Pretended:
        own = Tensor._make_wrapper_subclass(
            cls, on_cpu.size(), on_cpu.stride(), on_cpu.storage_offset(), dtype=on_cpu.dtype, device=CUDA
        )
        own.on_cpu = on_cpu
        return own

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Pretended) -> None:
        self.on_cpu = other.on_cpu
        Tensor.data.__set__(self, other)

    def tolist(self) -> Any:
        _watch.found("wait", "tolist")
        return self.on_cpu.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.on_cpu!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Watch:
    """Collects findings.

    Attributes:
        findings: each with its number.
        operators: how many were looked at; a watch that saw none has nothing to say.
    """

    def __init__(self) -> None:
        self.findings: Counter[Finding] = Counter()
        self.operators = 0
        self.looking = True
        self.generators: dict[torch.Generator, torch.Generator] = {}

    def clear(self) -> None:
        self.findings.clear()
        self.operators = 0

    def stop(self) -> None:
        """Look at nothing from now on."""
        self.looking = False

    def of(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    def found(self, kind: str, operator: str) -> None:
        if self.looking:
            self.findings[Finding(kind, operator, _place())] += 1

    def look(self, function: Any, args: Any, kwargs: Any) -> None:
        """Look at the arguments of an operator."""
        name, leaves = _name(function), [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in leaves if isinstance(x, Pretended)]
        if any(x.is_cuda for x in leaves if not isinstance(x, Pretended)):
            raise RuntimeError(f"{function}: expected pretended tensors, got one of the mock device")
        self.operators += 1
        if name in MOVING:
            self._look_at_move(name, args, kwargs)
        elif here:
            self._look_at_indices(name, args)
            chosen = [i for i in args[1] if i is not None] if name in INDEXING else []
            self._look_at_devices(name, [x for x in leaves if all(x is not index for index in chosen)])
            if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
                self.found("wait", name)
            if name in PRODUCTS and all(x.dtype == torch.float32 for x in here):
                self.found("float32 product", name)

    def _look_at_move(self, name: str, args: Any, kwargs: Any) -> None:
        source = args[1] if name != "_to_copy" else args[0]
        there = isinstance(args[0], Pretended) if name != "_to_copy" else _is_cuda(kwargs.get("device", source.device))
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if there != isinstance(source, Pretended) and blocking:
            self.found("wait", f"{name} to the {'device' if there else 'host'}")

    def _look_at_indices(self, name: str, args: Any) -> None:
        if name not in INDEXING:
            return
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        # A single number under a mask becomes masked_fill.
        fills = name.endswith(("put", "put_", "impl_")) and args[2].dim() == 0
        if not fills and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.found("wait", f"{name} by a mask")
        if any(not isinstance(index, Pretended) for index in indices):
            self.found("wait", f"{name} by indices of the host")

    def _look_at_devices(self, name: str, leaves: list[Tensor]) -> None:
        """A number of the host (0-dim) may stand beside tensors of the device, but not be joined to them."""
        allowed = 0 if name not in ("cat", "stack") else -1
        if any(not isinstance(x, Pretended) and x.dim() > allowed for x in leaves):
            self.found("mixed devices", name)


_watch = Watch()


def _name(function: Any) -> str:
    return function._schema.name.split("::")[-1]


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _place() -> str:
    """Innermost frame of the package, and of torchvision within it; a backward pass of torch's own has none."""
    # A mode through which layers are called is where none of them is.
    hidden = ("<", "__torch_function__")
    frames = [f for f in traceback.extract_stack() if Path(f.filename) != HERE and not f.name.startswith(hidden)]
    own = next(
        (frame for frame in reversed(frames) if Path(frame.filename).parts[: len(CODE.parts)] == CODE.parts), None
    )
    if own is None:
        own = next((frame for frame in reversed(frames) if Path(frame.filename).parent == HERE.parent), None)
        return f"{Path(own.filename).name} {own.name}" if own else "backward"
    place = f"{Path(own.filename).relative_to(CODE)} {own.name}"
    inner = next((frame for frame in reversed(frames) if "/torchvision/" in frame.filename), None)
    return f"{place}, torchvision's {Path(inner.filename).name} {inner.name}" if inner else place


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    _watch.look(function, args, kwargs)
    on_device = any(isinstance(x, Pretended) for x in tree_leaves((args, kwargs)))
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        on_device = _is_cuda(kwargs["device"])
        kwargs["device"] = torch.device("cpu")
    if on_device and "pin_memory" in kwargs:
        kwargs["pin_memory"] = None
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cuda":
        kwargs["generator"] = _twin(generator)
    if _name(function) == "copy_":
        on_device = isinstance(args[0], Pretended)
    results = function(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    if not on_device:
        return results
    if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(results)):
        _watch.found("float64", _name(function))
    if _name(function).endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    if isinstance(kwargs.get("out"), Pretended):
        return kwargs["out"]
    return tree_map(lambda x: Pretended(x) if type(x) is Tensor else x, results)


def _bare(value: Any) -> Any:
    return value.on_cpu if isinstance(value, Pretended) else value


def _twin(generator: torch.Generator) -> torch.Generator:
    """A generator of the CPU for one of the device, with its seed and a state of its own."""
    if generator not in _watch.generators:
        _watch.generators[generator] = torch.Generator().manual_seed(generator.initial_seed())
    return _watch.generators[generator]


class _Operators(TorchDispatchMode):
    """For operators without a pretended argument, such as those that make tensors."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Numbered(TorchFunctionMode):
    """ "cuda" is cuda:0 for every function, for torch would ask the device for its number on the way."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _numbered(kwargs["device"])
        if function is Tensor.to:
            args = tuple(map(_numbered, args))
        return function(*args, **kwargs)


def _numbered(value: Any) -> Any:
    return CUDA if isinstance(value, str | torch.device) and str(value) == "cuda" else value


@contextmanager
def pretending() -> Iterator[Watch]:
    """Within, what is made on or moved to a CUDA device is a `Pretended`; the watch has seen all of it."""
    global _watch
    _watch = Watch()
    synchronize = torch.cuda.synchronize
    torch.cuda.synchronize = _counted_wait
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Numbered(), _Operators():
            yield _watch
    finally:
        torch.cuda.synchronize = synchronize
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)


def _counted_wait(*_: Any) -> None:
    _watch.found("wait", "synchronize")
