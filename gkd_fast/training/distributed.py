"""Several processes train one network: torchrun's process group, DDP or FSDP2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import FasterRCNN, RetinaNet

from gkd_fast import parallel
from gkd_fast.config import Config
from gkd_fast.errors import InputError

R = TypeVar("R")

# The main process evaluates while the others wait.
_PATIENCE = timedelta(hours=2)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within, the processes that torchrun started know each other; nothing happens where it started one or none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield
    dist.destroy_process_group()


def check(config: Config) -> None:
    """Check the settings that depend on the number of processes.

    Raises:
        InputError: naming the option.
    """
    processes, run = parallel.world_size(), config.run
    for name in ("batch_size", "teacher_batch_size"):
        if (given := getattr(config.optim, name)) % processes:
            option = name.replace("_", "-")
            raise InputError(f"--{option}: expected a multiple of the {processes} processes, got {given}")
    if processes > 1 and run.sharding == "fsdp" and run.amp and run.amp_dtype == "fp16":
        raise InputError("--amp-dtype: expected bf16 with --sharding fsdp, got fp16")
    if processes > 1 and run.compile == "on" and run.sharding == "fsdp":
        raise InputError("--compile: expected a student that is not sharded; drop --sharding fsdp")
    if run.sync_norm and torch.device(run.device if run.device != "auto" else "cuda").type != "cuda":
        raise InputError("--sync-norm: expected GPUs, where torch has it; on the CPU --freeze-norm trains alike")


def fail_first() -> bool:
    """Whether this process is the first of the run to fail; the others then fail for want of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return os.environ.get("RANK", "0") == "0"
    try:
        return dist.distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:  # the store went with the process that held it
        return False


def lost_contact(error: BaseException) -> bool:
    """Whether a process failed because another one did."""
    words = ("Connection closed by peer", "Connection reset", "gloo", "Gloo", "NCCL", "Broken pipe")
    return parallel.world_size() > 1 and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def prepare_student(detector: nn.Module, others: nn.Module | None, config: Config, device: torch.device) -> None:
    """Synchronise batch normalisation and shard what is trained, in place and before the optimiser is made.

    Args:
        detector: torchvision's Faster R-CNN or RetinaNet.
        others: further trained modules, called as a whole or by their children.
        config: sharding, sync_norm, amp.
        device: of this process.
    """
    if parallel.world_size() == 1:
        return
    if config.run.sync_norm:
        _synchronise_norms(detector)
    if config.run.sharding != "fsdp":
        return
    norms = any(isinstance(module, _BatchNorm) for module in detector.modules())
    # Batch normalisation wants float32 weights beside its float32 statistics.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if config.run.amp and not norms else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    _shard(_units(detector), device, policy, reshard=False)
    if others is not None:
        plain = MixedPrecisionPolicy(cast_forward_inputs=False)
        _shard([module for module in others.children() if list(module.parameters())], device, plain, reshard=False)


def shard_teacher(detector: nn.Module, device: torch.device) -> None:
    """Leave each process its part of a frozen detector; blocks are gathered one by one when they run.

    A block is moved to the device by itself, so that the whole need not fit there.
    """
    _shard(_units(detector), device, MixedPrecisionPolicy(cast_forward_inputs=False), reshard=True)
    detector.to(device)  # what is not sharded: statistics, if there are any


def is_sharded(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether any of the parameters is there in part only."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def _shard(units: list[nn.Module], device: torch.device, policy: MixedPrecisionPolicy, *, reshard: bool) -> None:
    mesh = init_device_mesh(device.type, (parallel.world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)


def _units(detector: Any) -> list[nn.Module]:
    """The parts of a detector that adapters and torchvision call by themselves, blocks of the backbone first."""
    backbone = detector.backbone
    stages = [stage for stage in backbone.body.children() if list(stage.parameters())]
    blocks = [block for stage in stages if isinstance(stage, nn.Sequential) for block in stage.children()]
    units = [block for block in blocks if list(block.parameters())] + [backbone]
    if isinstance(detector, FasterRCNN):
        return [*units, detector.rpn.head, detector.roi_heads.box_head, detector.roi_heads.box_predictor]
    assert isinstance(detector, RetinaNet)
    classify, regress = detector.head.classification_head, detector.head.regression_head
    return [*units, classify.conv, classify.cls_logits, regress.conv, regress.bbox_reg]


def _synchronise_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            _synchronise_norms(child)


class _Pass(nn.Module):
    """Has a detector's parameters and runs any function of them, for DDP to see the pass."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, function: Callable[..., R], *arguments: Any) -> R:
        """The function's value."""
        return function(*arguments)


def data_parallel(detector: nn.Module, config: Config, device: torch.device) -> Callable[..., Any]:
    """Calls a function of the detector so that its gradients are averaged over the processes.

    FSDP2 averages on its own; a single process has nothing to average.
    """
    if parallel.world_size() == 1 or config.run.sharding == "fsdp":
        return lambda function, *arguments: function(*arguments)
    torch._dynamo.config.optimize_ddp = False  # parts are compiled, not the pass: there is nothing to split
    return DistributedDataParallel(_Pass(detector), device_ids=[device.index] if device.index is not None else None)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The state dict of a network, gathered on the main process where it is sharded."""
    if parallel.world_size() == 1:
        return model.state_dict()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
