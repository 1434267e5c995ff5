"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gkd_fast.config import OptimConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig, lr: float) -> Optimizer:
    """SGD with momentum or AdamW over the trainable parameters.

    Both are fused: one kernel updates all weights, and skips the update where `found_inf` is set on the device;
    torch has no such kernel for SGD on sharded weights.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if config.optimizer == "adamw":
        return AdamW(trainable, lr=lr, weight_decay=config.weight_decay, fused=True)
    fused = not any(isinstance(parameter, DTensor) for parameter in trainable)
    optimizer = SGD(trainable, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused)
    if config.momentum:
        # Left to the first step, the momentum would stay uninitialised where that step is skipped.
        for parameter in trainable:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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
