"""What the processes of one run agree on; where one process trains, every function here is the identity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def processor_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient: what a mean over the global batch divides by."""
    value = value.detach()
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def largest(value: int) -> int:
    """The largest of a number over all processes."""
    if world_size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def barrier() -> None:
    """Wait for all processes."""
    largest(0)


def from_main(value: T) -> T:
    """The main process's value."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder)
    return holder[0]


def gather(value: T) -> list[T]:
    """Every process's value on the main process, in the order of ranks; an empty list elsewhere."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.gather_object(value, found if is_main() else None)
    return found if is_main() else []


def own_share(items: Sequence[T]) -> list[T]:
    """Every world_size-th of the items, beginning with the rank-th; equally many in each process.

    Where they cannot be divided, the first item is repeated: it belongs to rank 0, which never gets a repeated one.
    """
    share = list(items[rank() :: world_size()])
    return share if len(share) == -(-len(items) // world_size()) else [*share, items[0]]


class MeanGradients:
    """Averages gradients over the processes at the end of every backward pass that gave one.

    For parameters outside of the data parallel wrapper around the network that is trained. Parameters that are sharded
    (FSDP2) are left to it.

    Args:
        parameters: on every process the same, in the same order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._queued = False
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, _parameter: Tensor) -> None:
        if world_size() > 1 and not self._queued:
            self._queued = True
            # At the end, in one call: gradients arrive in an order that may differ between processes.
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        self._queued = False
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        mean = total(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
        parts = mean.split([gradient.numel() for gradient in gradients])
        for parameter, gradient, part in zip(self.parameters, gradients, parts, strict=True):
            parameter.grad = gradient
            gradient.copy_(part.view_as(gradient))
