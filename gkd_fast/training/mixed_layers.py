"""What autocast leaves to gain in the layers of a network in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gkd_fast import parallel
from gkd_fast.detectors.folding import activated_norms
from gkd_fast.ops.batch_norm import batch_norm
from gkd_fast.ops.depthwise_convolution import depthwise_convolution
from gkd_fast.ops.max_pool import max_pool
from gkd_fast.training.convolution_product import Window
from gkd_fast.training.linear_product import linear_product

_Pair = int | tuple[int, ...] | list[int]

_LIMITS: dict[type[nn.Module], tuple[float, float]] = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
_LEAST_NORMALISED = 2**16  # numbers from which our batch normalisation is faster without an activation, too


class MixedLayers(TorchFunctionMode):
    """Runs the layers of autocast in the ways that are fastest, to the same numbers but for rounding.

    Frozen weights are converted once, those in training all at once; autocast does so at every call, one by one.
    Batch normalisation counts its batches for all layers at once. On a CPU some layers leave torch's kernels:

    - Small maps under many weights are matrix products, without oneDNN's reordering of all weights at every call: of a
      step of ResNet-18 with 128 x 128 pixels a third.
    - Depthwise convolutions of a stride: oneDNN's gradient of their input takes 19 to 130 times as long in bfloat16 as
      in float32, of a step of MobileNetV2 with 128 x 128 pixels a quarter.
    - Batch normalisation with the ReLU or ReLU6 behind it is one operator, and of large maps without one as well.
    - Linear layers of many weights copy one gradient for that of their weights (`linear_product`).
    - Pooling in frozen networks finds the largest values alone, not where they lie.

    Args:
        device: of the networks.
        dtype: of autocast.
        student: the detector in training; None: nothing is done for all of its layers at once.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, student: nn.Module | None = None) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype
        self._frozen: dict[int, tuple[Tensor, int, Tensor]] = {}
        modules = list(student.modules()) if student is not None else []
        # All gradients of weights that are converted at once arrive at once: several processes could not begin to
        # exchange them before.
        self._trained = {} if parallel.world_size() > 1 else {id(w): w for w in _trained_weights(modules, device)}
        self._converted: dict[int, Tensor] = {}
        self._limits = {id(norm.weight): _LIMITS[kind] for norm, kind in _activated(student, device)}
        self._activated: Tensor | None = None
        self._counters = {id(counter): counter for counter in _counters(modules)}
        self._counted: dict[int, Tensor] = {}
        self._layers: dict[Callable[..., Any], Callable[..., Any]] = {
            torch.conv2d: self._convolution,
            functional.linear: self._linear,
            functional.batch_norm: self._normalisation,
            functional.hardtanh: self._activation,
            functional.relu: self._activation,
            functional.max_pool2d: self._pooling,
            torch.Tensor.add_: self._count,
        }

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = self._layers.get(function)
        if own is None or not torch.is_autocast_enabled(self.device.type):
            return function(*args, **(kwargs or {}))
        return own(function, *args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        self._converted, self._activated = {}, None
        self._add_counted()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _convolution(
        self,
        function: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Pair = 1,
        padding: _Pair | str = 0,
        dilation: _Pair = 1,
        groups: int = 1,
    ) -> Tensor:
        if self.device.type == "cpu" and not isinstance(padding, str) and x.dim() == 4 and set(_pair(dilation)) == {1}:
            window = Window(_pair(weight.shape[2:]), _pair(stride), _pair(padding))
            if groups == 1 and window.is_faster_as_product(x, weight):
                return window.convolve(x, self._in_dtype(weight), self._in_dtype(bias))
            if bias is None and _is_strided_depthwise(x, weight, window):
                maps = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
                return depthwise_convolution(maps, weight.float(), stride=window.stride[0], padding=window.padding[0])
        return function(x, self._in_dtype(weight), self._in_dtype(bias), stride, padding, dilation, groups)

    def _linear(self, function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        own = linear_product if self.device.type == "cpu" and x.dim() == 2 else function
        return own(x, self._in_dtype(weight), self._in_dtype(bias))

    def _normalisation(
        self,
        function: Callable[..., Tensor],
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        limits = self._limits.get(id(weight))
        own = training and weight is not None and bias is not None and _is_channels_last_on_cpu(x)
        if not own or not (limits or x.numel() >= _LEAST_NORMALISED) or x.numel() == x.shape[1]:
            return function(x, running_mean, running_var, weight, bias, training, momentum, eps)
        assert weight is not None
        assert bias is not None
        low, high = limits or (-math.inf, math.inf)
        found = batch_norm(x, weight, bias, running_mean, running_var, momentum=momentum, eps=eps, low=low, high=high)
        self._activated = found if limits else None
        return found

    def _activation(self, function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """An activation; nothing where batch normalisation has done it already."""
        return x if x is self._activated else function(x, *args, **kwargs)

    def _pooling(
        self,
        function: Callable[..., Tensor],
        x: Tensor,
        size: _Pair,
        stride: _Pair | None = None,
        padding: _Pair = 0,
        dilation: _Pair = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        (side, wide), (step, across), (edge, beside) = map(_pair, (size, stride or size, padding))
        alike = side == wide and step == across and edge == beside and set(_pair(dilation)) == {1}
        trained = torch.is_grad_enabled() and x.requires_grad
        if trained or ceil_mode or return_indices or not alike or not _is_channels_last_on_cpu(x):
            return function(x, size, stride, padding, dilation, ceil_mode, return_indices)
        return max_pool(x, side, stride=step, padding=edge)

    def _count(self, function: Callable[..., Tensor], counter: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._counters.get(id(counter)) is not counter:
            return function(counter, *args, **kwargs)
        if id(counter) in self._counted:
            self._add_counted()
        self._counted[id(counter)] = counter
        return counter

    def _add_counted(self) -> None:
        if self._counted:
            torch._foreach_add_(list(self._counted.values()), 1)
            self._counted = {}

    def _in_dtype(self, value: Any) -> Any:
        """A weight in the dtype of autocast, where autocast would convert it anew."""
        if type(value) is not nn.Parameter or value.dtype != torch.float32:
            return value
        if not value.requires_grad:
            return self._in_dtype_once(value)
        if self._trained.get(id(value)) is not value or not torch.is_grad_enabled():
            return value
        if not self._converted:
            converted = _Converted.apply(self.dtype, *self._trained.values())
            self._converted = dict(zip(self._trained, converted, strict=True))
        return self._converted[id(value)]

    def _in_dtype_once(self, value: nn.Parameter) -> Tensor:
        """A frozen weight, converted anew only where it was changed."""
        weight, version, converted = self._frozen.get(id(value), (None, -1, value))
        if weight is not value or version != value._version or converted.device != value.device:
            converted = value.detach().to(self.dtype)
            self._frozen[id(value)] = value, value._version, converted
        return converted


class _Converted(torch.autograd.Function):
    """Tensors in another dtype, and their gradients in their own, by one launch each way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = values[0].dtype
        return _convert(values, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        converted = iter(_convert(there, ctx.dtype))
        return None, *(None if gradient is None else next(converted) for gradient in gradients)


def _convert(values: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    given = list(values)
    converted = [torch.empty_like(value, dtype=dtype) for value in given]
    torch._foreach_copy_(converted, given)
    return tuple(converted)


def _trained_weights(modules: Iterable[nn.Module], device: torch.device) -> list[Tensor]:
    """What autocast converts, but for what stays float32 here."""
    layers = [module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear))]
    kept = [layer for layer in layers if not (device.type == "cpu" and _stays_exact(layer))]
    weights: list[Tensor] = [w for layer in kept for w in (layer.weight, layer.bias) if w is not None]
    return [w for w in weights if w.requires_grad and w.dtype == torch.float32 and not isinstance(w, DTensor)]


def _stays_exact(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and max(_pair(layer.stride)) > 1


def _activated(student: nn.Module | None, device: torch.device) -> list[tuple[nn.BatchNorm2d, type[nn.Module]]]:
    """The student's normalisations that only an activation sees, with its kind."""
    if student is None or device.type != "cpu":
        return []
    pairs = activated_norms(student.get_submodule("backbone"))
    return [(norm, type(act)) for norm, act in pairs if type(act) in _LIMITS and norm.weight is not None]


def _counters(modules: Iterable[nn.Module]) -> list[Tensor]:
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    # Without a momentum the number is looked at in every pass.
    return [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None and n.momentum is not None]


def _is_channels_last_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _is_strided_depthwise(x: Tensor, weight: Tensor, window: Window) -> bool:
    depthwise = weight.shape[1] == 1 and len(weight) == x.shape[1] > 1 and max(window.stride) > 1
    alike = all(high == wide for high, wide in window)
    return depthwise and alike and torch.is_grad_enabled() and x.requires_grad


def _pair(value: _Pair) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
