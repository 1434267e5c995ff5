"""Registration of the raw operators `torch.ops.gkd_fast.*`: schema and shape function."""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("gkd_fast", "FRAGMENT")


def define(schema: str, fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Define `name(arguments) -> results`, with `fake` computing the results' shapes for the compiler."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    torch.library.register_fake(f"gkd_fast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.gkd_fast, name).default


def implement(operator: torch._ops.OpOverload, function: Callable[..., Any], key: str) -> None:
    """Run a Python function as the raw operator on the devices of one dispatch key."""
    _LIBRARY.impl(operator._schema.name.removeprefix("gkd_fast::"), function, key)
