"""Mixed precision: which number format runs where, and updates that never see a number that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gkd_fast.config import RunConfig
from gkd_fast.errors import InputError
from gkd_fast.training.mixed_layers import MixedLayers


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where one is there.

    Raises:
        InputError: if a GPU is asked for and none is there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device: expected a GPU for cuda, torch sees none")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


class Precision:
    """Autocast and, for fp16, the gradient scaler.

    Args:
        run: the settings.
        device: of the networks.
        student: the detector in training, on the device.
    """

    def __init__(self, run: RunConfig, device: torch.device, student: nn.Module | None = None) -> None:
        if run.amp and run.amp_dtype == "fp16" and device.type == "cpu":
            raise InputError("--amp-dtype: fp16 needs a GPU; expected bf16 on the CPU")
        self.enabled = run.amp
        self.dtype = torch.float16 if run.amp_dtype == "fp16" else torch.bfloat16
        self.device = device
        self._layers = MixedLayers(device, self.dtype, student if run.amp else None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.amp and run.amp_dtype == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of every forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled)

    def student_pass(self) -> AbstractContextManager[Any]:
        """The context of a forward pass with gradients that is not compiled."""
        stack = ExitStack()
        stack.enter_context(self.autocast())
        if self.enabled:
            stack.enter_context(self._layers)
        return stack

    def update(
        self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], terms: Tensor, clip_norm: float
    ) -> tuple[Tensor, Tensor]:
        """Clip the gradients and step; the device skips the step where a term or a gradient is not finite.

        Args:
            optimizer: of the parameters; unless it is fused, the host waits to know whether to step.
            parameters: whose gradients the backward pass has left, scaled by `scaler`.
            terms: [T] loss terms.
            clip_norm: upper limit of the gradient's norm; 0: none.

        Returns:
            finite: bool scalar, whether the weights were updated.
            bad: bool scalar, whether the step counts as a bad one: an overflow that a smaller scale of fp16 will
                cure does not.
        """
        self.scaler.unscale_(optimizer)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        fused = bool(optimizer.defaults["fused"])
        if clip_norm and fused and not isinstance(norm, DTensor):
            # Fused optimisers divide by it as they go; the epsilon is that of torch's clipping.
            setattr(optimizer, "grad_scale", ((norm + 1e-6) / clip_norm).clamp(min=1))  # noqa: B010 - of these alone
        elif clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        finite_terms = terms.detach().isfinite().all()
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        finite = finite_terms & norm.isfinite()
        if fused:
            setattr(optimizer, "found_inf", (~finite).float())  # noqa: B010 - of fused optimisers alone
            optimizer.step()
        elif finite:
            optimizer.step()
        bad = ~finite
        if self.scaler.is_enabled():
            scale: Any = self.scaler._scale
            bad = ~finite_terms | (bad & (scale <= 1))
            self.scaler.update()
        return finite, bad


class RunningStatistics:
    """Batch normalisation's running statistics, which a bad batch would spoil in the forward pass.

    The layers' buffers become views of one tensor, which one launch saves and one restores.

    Args:
        model: on the device, and in one piece.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._views: list[Tensor] = []
        self._flat = self._saved = torch.empty(0)

    def save(self) -> None:
        """Remember the statistics before a step."""
        buffers = [buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var)]
        if len(buffers) != len(self._views) or any(b is not v for b, v in zip(buffers, self._views, strict=True)):
            self._join()
        self._saved.copy_(self._flat)

    def keep(self, finite: Tensor) -> None:
        """Restore what was saved unless `finite` (a bool scalar on the device)."""
        if self._views:
            torch.where(finite, self._flat, self._saved, out=self._flat)

    def _join(self) -> None:
        """Make all buffers parts of one tensor: at first, and where a layer was given others."""
        self._layers = [layer for layer in self._layers if layer.running_mean is not None]
        self._views = []
        if not self._layers:
            return
        found = [buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var)]
        buffers = [buffer for buffer in found if buffer is not None]
        self._flat = torch.cat([buffer.flatten() for buffer in buffers])
        self._saved = torch.empty_like(self._flat)
        parts = self._flat.split([buffer.numel() for buffer in buffers])
        self._views = [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)]
        for layer, mean, variance in zip(self._layers, self._views[::2], self._views[1::2], strict=True):
            layer.running_mean, layer.running_var = mean, variance
