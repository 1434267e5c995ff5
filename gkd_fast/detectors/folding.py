"""What stands before and behind batch normalisation; that of a frozen network folded into its convolutions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


class _Tracer(Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, _NORMS) or super().is_leaf_module(module, qualified_name)


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> int:
    """Replace, in place, each batch normalisation by the identity wherever only it sees a convolution's output.

    Args:
        network: in evaluation mode and frozen, such as a backbone with its pyramid. Networks that torch.fx cannot
            trace stay as they are.

    Returns:
        The number of layers folded.
    """
    modules = dict(network.named_modules())
    nodes = _nodes(network)
    pairs = [(_before(node), str(node.target)) for node in nodes if _follows_convolution(node, modules)]
    for conv_name, norm_name in pairs:
        _replace(network, conv_name, _folded(modules[conv_name], modules[norm_name]))
        _replace(network, norm_name, nn.Identity())
    return len(pairs)


def activated_norms(network: nn.Module) -> list[tuple[nn.BatchNorm2d, nn.Module]]:
    """Each batch normalisation whose output only one module sees, with that module.

    Args:
        network: such as a backbone with its pyramid; one that torch.fx cannot trace has none.
    """
    modules: dict[str, Any] = dict(network.named_modules())
    found = []
    for node in _nodes(network):
        norm = modules[str(node.target)] if node.op == "call_module" else None
        users = list(node.users)
        if type(norm) is not nn.BatchNorm2d or len(users) != 1 or users[0].op != "call_module":
            continue
        if _calls(node.graph, str(node.target)) == 1:
            found.append((norm, modules[str(users[0].target)]))
    return found


def _nodes(network: nn.Module) -> list[Node]:
    try:
        return list(_Tracer().trace(network).nodes)
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError, RuntimeError):
        return []


def _follows_convolution(node: Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module" or not isinstance(modules[str(node.target)], _NORMS):
        return False
    before: Any = node.args[0]
    calls_once = before.op == "call_module" and len(before.users) == 1
    return (
        calls_once
        and type(modules[str(before.target)]) is nn.Conv2d
        and all(_calls(node.graph, str(module.target)) == 1 for module in (before, node))
    )


def _before(node: Node) -> str:
    before: Any = node.args[0]
    return str(before.target)


def _calls(graph: torch.fx.Graph, name: str) -> int:
    return sum(node.op == "call_module" and node.target == name for node in graph.nodes)


def _folded(conv: Any, norm: Any) -> nn.Module:
    folded: nn.Module = copy.deepcopy(conv)
    folded.weight, folded.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return folded.requires_grad_(False)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
