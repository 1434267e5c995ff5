"""Which compiled forms of a kernel can ever be launched: a short list, so that all can be built ahead of time.

The launchers keep the list complete: every pointer they pass is a multiple of 16 bytes, no integer is
specialised, and what else decides the code (dtypes, layouts, tile sizes) comes from the same rules as the list.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


# Triton's default depends on its version; without fusion every a * b + c takes two instructions.
FUSION = {"enable_fp_fusion": True}


class Kernel(triton.JITFunction):
    """A kernel whose multiplications and additions are fused."""

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """What launches it on a grid."""
        return functools.partial(self.run, grid=grid, warmup=False, **FUSION)


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
