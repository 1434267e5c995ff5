"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gkd_fast.config import OptimConfig
from gkd_fast.ops._pyramid import is_channels_last


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig, lr: float) -> Optimizer:
    """SGD with momentum or AdamW over the trainable parameters.

    Both are fused: one kernel updates all weights, and skips the update where `found_inf` is set on the device;
    torch has no such kernel for SGD on sharded weights.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if config.optimizer == "adamw":
        return _in_one_pass(AdamW(trainable, lr=lr, weight_decay=config.weight_decay, fused=True))
    fused = not any(isinstance(parameter, DTensor) for parameter in trainable)
    optimizer = SGD(trainable, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused)
    if config.momentum:
        # Left to the first step, the momentum would stay uninitialised where that step is skipped.
        for parameter in trainable:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return _in_one_pass(optimizer)


def _in_one_pass(optimizer: Optimizer) -> Optimizer:
    """The optimiser, which during a step sees channels-last weights on the CPU as the contiguous tensors that they are.

    torch's fused kernels copy all others there and back: of a step of ResNet-18 with 128 x 128 pixels a tenth.
    """
    turned: list[nn.Parameter] = []

    def turn(order: tuple[int, ...]) -> None:
        for parameter in turned:
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.permute(order)
            parameter.grad = gradient.permute(order) if gradient is not None else None
            state = optimizer.state.get(parameter, {})
            state.update({k: v.permute(order) for k, v in state.items() if isinstance(v, Tensor) and v.dim() == 4})

    def before(*step: Any) -> None:
        turned[:] = filter(_is_copied, (p for group in optimizer.param_groups for p in group["params"]))
        turn((0, 2, 3, 1))

    def after(*step: Any) -> None:
        turn((0, 3, 1, 2))

    if optimizer.defaults["fused"]:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
    return optimizer


def _is_copied(parameter: nn.Parameter) -> bool:
    if isinstance(parameter, DTensor) or parameter.device.type != "cpu" or parameter.dim() != 4:
        return False
    return is_channels_last(parameter)


def build_schedule(optimizer: Optimizer, config: OptimConfig, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then a multi-step or half-cosine schedule, advanced once a step."""
    total = epochs * steps_per_epoch
    warmup = min(config.warmup_steps, total // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in config.milestones)

    return LambdaLR(optimizer, factor)
