"""Other parts in a network for the length of a pass, while the network itself stays as it is."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def with_parts(module: M, **parts: Any) -> M:
    """The module with other parts: a new one that has these attributes and shares all else, weights and hooks too.

    It is made anew for every pass, so that it is in the mode (training or evaluation) that the module is in.
    """
    # Neither __init__, which would make new weights, nor copy(), which classes may have changed.
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin._modules = dict(module._modules)
    for name, part in parts.items():
        setattr(twin, name, part)
    return twin


class Float32(nn.Module):
    """A head with float32 outputs, under autocast too, so that losses and the decoding of boxes run in float32.

    Args:
        head: returns tensors, or lists and dicts of them.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Any) -> Any:
        """The head's outputs as float32."""
        return _to_float(self.head(features))


def _to_float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, (list, tuple)):
        return type(value)(_to_float(item) for item in value)
    if isinstance(value, dict):
        return {name: _to_float(item) for name, item in value.items()}
    return value
