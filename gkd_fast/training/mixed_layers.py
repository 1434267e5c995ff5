"""What autocast leaves to gain in convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gkd_fast.training.convolution_product import Window

_Pair = int | tuple[int, ...] | list[int]


class MixedLayers(TorchFunctionMode):
    """Runs the layers of autocast in the ways that are fastest, to the same numbers but for rounding.

    Frozen weights are converted once; autocast does so at every call. On a CPU two kinds of convolutions leave oneDNN:

    - Small maps under many weights are matrix products, without its reordering of all weights at every call: of a step
      of ResNet-18 with 128 x 128 pixels a third.
    - Depthwise convolutions of a stride run in float32 where they get a gradient: that of their input takes 19 to 130
      times as long in bfloat16, of a step of MobileNetV2 with 128 x 128 pixels a quarter.

    Args:
        device: of the networks.
        dtype: of autocast.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype
        self._converted: dict[int, tuple[Tensor, int, Tensor]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _LAYERS or not torch.is_autocast_enabled(self.device.type):
            return function(*args, **kwargs)
        args = tuple(map(self._frozen, args))
        if self.device.type == "cpu" and function is torch.conv2d and not kwargs:
            return self._convolution(*args)
        return function(*args, **kwargs)

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Pair = 1,
        padding: _Pair | str = 0,
        dilation: _Pair = 1,
        groups: int = 1,
    ) -> Tensor:
        if _is_strided_depthwise(x, weight, stride):
            with torch.autocast("cpu", enabled=False):
                bias = bias if bias is None else bias.float()
                exact = torch.conv2d(x.float(), weight.float(), bias, stride, padding, dilation, groups)
                return exact.to(self.dtype)
        if x.dim() == 4 and groups == 1 and not isinstance(padding, str) and set(_pair(dilation)) == {1}:
            window = Window(_pair(weight.shape[2:]), _pair(stride), _pair(padding))
            if window.is_faster_as_product(x, weight):
                return window.convolve(x, weight, bias)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def _frozen(self, value: Any) -> Any:
        """A frozen float32 weight in the dtype of autocast, converted anew only where it was changed."""
        if type(value) is not nn.Parameter or value.requires_grad or value.dtype != torch.float32:
            return value
        weight, version, converted = self._converted.get(id(value), (None, -1, value))
        if weight is not value or version != value._version or converted.device != value.device:
            converted = value.detach().to(self.dtype)
            self._converted[id(value)] = value, value._version, converted
        return converted


_LAYERS = (torch.conv2d, functional.linear)


def _is_strided_depthwise(x: Tensor, weight: Tensor, stride: _Pair) -> bool:
    depthwise = weight.shape[1] == 1 and len(weight) > 1
    return depthwise and torch.is_grad_enabled() and x.requires_grad and max(_pair(stride)) > 1


def _pair(value: _Pair) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
