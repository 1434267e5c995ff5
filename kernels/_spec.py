"""Which compiled forms of a kernel can ever be launched: a short list, so that all can be built ahead of time.

The launchers keep the list complete: every pointer they pass is a multiple of 16 bytes, no integer is
specialised, and what else decides the code (dtypes, layouts, tile sizes) comes from the same rules as the list.
"""

from typing import Any, NamedTuple

import torch
import triton

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Launch(NamedTuple):
    """One compiled form: types of all parameters in order ("constexpr" where constant), constants, schedule."""

    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int

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
