"""Which compiled forms of a kernel can ever be launched: a short list, so that all can be built ahead of time.

The launchers keep the list complete: every pointer they pass is a multiple of 16 bytes, no integer is
specialised, and what else decides the code (dtypes, layouts, tile sizes) comes from the same rules as the list.
"""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


# Triton's default depends on its version; without fusion every a * b + c takes two instructions.
FUSION = {"enable_fp_fusion": True}


LARGEST = 2**31 - 1  # of the integers of all listed forms


class Kernel(triton.JITFunction):
    """A kernel whose multiplications and additions are fused, and whose compiled forms are found by few questions.

    Triton binds, types and specialises every argument at every launch, which takes the host longer than the launch.
    Here a form is known by the device, the configuration and the dtypes, and is started as Triton itself ends in
    starting it, but for the hooks of its profiler. What starts it refuses a float for an integer, and takes an integer
    for a float. A launch that breaks the launchers' promise above, or has larger integers, is left to Triton.

    The parameters are pointers, integers, floats and constants, in this order.
    """

    @functools.cached_property
    def _forms(self) -> dict[tuple[Any, ...], tuple[Any, int]]:
        """Compiled forms, and how many of their numbers are integers."""
        return {}

    @functools.cached_property
    def _order(self) -> tuple[int, list[str]]:
        """How many pointers there are, and the names of the constants."""
        return sum(n.endswith("_ptr") for n in self.arg_names), [p.name for p in self.params if p.is_constexpr]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        """What launches it on a grid, and returns its compiled form."""
        return functools.partial(self._start, grid)

    def _start(self, grid: tuple[int, ...], *arguments: Any, **configuration: Any) -> Any:
        pointers, names = self._order
        tensors, numbers = arguments[:pointers], arguments[pointers:]
        addresses = [tensor.data_ptr() for tensor in tensors]
        constants = [configuration[name] for name in names]
        device = torch.cuda.current_device()
        schedule = configuration["num_warps"], configuration["num_stages"]
        key = (device, *schedule, *constants, *[tensor.dtype for tensor in tensors])
        form, integers = self._forms.get(key) or (None, sum(isinstance(n, int) for n in numbers))
        listed = max(numbers[:integers], default=0) <= LARGEST and not functools.reduce(operator.or_, addresses) % 16
        if form is not None and listed:
            x, y, z = (*grid, 1, 1)[:3]
            handles = form.function, form.packed_metadata, None, None, None
            stream = triton.runtime.driver.active.get_current_stream(device)
            form.run(x, y, z, stream, *handles, *addresses, *numbers, *constants)
            return form
        form = self.run(*arguments, grid=grid, warmup=False, **configuration, **FUSION)
        if listed:
            self._forms[key] = form, integers
        return form


def unspecialised(fn: Callable[..., None]) -> triton.JITFunction:
    """`triton.jit` for a kernel that is launched: one compiled form whatever its numbers are."""
    parameters = inspect.signature(fn).parameters.items()
    numbers = [name for name, p in parameters if p.annotation is not tl.constexpr and not name.endswith("_ptr")]
    return (triton.jit if INTERPRETED else Kernel)(fn, do_not_specialize=numbers)


class Launch(NamedTuple):
    """One compiled form: types of all parameters in order ("constexpr" where constant), constants, schedule."""

    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """The schedule, and what all kernels are compiled with."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSION}

    @property
    def attrs(self) -> dict[tuple[int], list[list]]:
        """What the compiler may assume: each pointer is divisible by 16."""
        aligned = (i for i, kind in enumerate(self.signature.values()) if kind.startswith("*"))
        return {(i,): [["tt.divisibility", 16]] for i in aligned}


class KernelSpec(NamedTuple):
    """A kernel and every form it can be launched in."""

    fn: triton.JITFunction
    signatures: list[Launch]


def launch(fn: triton.JITFunction, types: dict[str, str], configuration: dict[str, Any]) -> Launch:
    """The form of `fn` with parameters of these types and `configuration`: its constants, num_warps, num_stages."""
    constants = {key: value for key, value in configuration.items() if key not in ("num_warps", "num_stages")}
    signature = {name: "constexpr" if name in constants else types[name] for name in fn.arg_names}
    return Launch(signature, constants, configuration["num_warps"], configuration["num_stages"])
