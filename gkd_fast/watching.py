"""Forward hooks that read the feature maps of any network, and leave nothing behind in copies of it."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Run = Callable[[nn.Module, Tensor], Any]
"""How a network is run on images [N,C,H,W]; what it returns is not looked at."""


_SHARDED = ("FSDP", "FullySharded")


class _LastLayer(BaseException):
    """Ends a forward pass behind the last watched layer."""


class Hook:
    """A forward hook whose deep copies and pickles do nothing, and need no gkd_fast.

    Copies of a watched network are made for EMA, checkpoints and export.
    """

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything, returns None


class _Tap(Hook):
    """Keeps a module's last output."""

    def __init__(self) -> None:
        self.value: Any = None
        self.versions: list[int] | None = None
        self.stop = False

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self.value = output
            return
        if torch._C._current_graph_task_id() != -1:  # a checkpointed segment that backward computes again
            return
        self.value, self.versions = output, _versions(output)
        if self.stop:
            raise _LastLayer


def unwrapped(network: nn.Module) -> nn.Module:
    """The network without data parallel wrappers and torch.compile's."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif type(network).__name__ == "OptimizedModule":  # looking the class up would load torch's compiler
            network = cast(nn.Module, network._orig_mod)
        else:
            return network


class Watched:
    """A network and the taps on its layers.

    It is no module, so that nobody trains, moves or saves the network by way of the distiller.

    Args:
        role: ``student`` or ``teacher``, for messages.
        network: any; wrapped or not.
        layers: names of its modules whose outputs are feature maps [N,C,H,W], or lists or dictionaries of them.
        run: how it is run; None: ``network(images)``.

    Raises:
        ValueError: for a name that the network does not have.
    """

    def __init__(self, role: str, network: nn.Module, layers: Sequence[str], run: Run | None = None) -> None:
        self.role, self.network, self.run = role, network, run or (lambda net, images: net(images))
        self.inner = unwrapped(network)
        if isinstance(layers, str) or not layers:
            raise ValueError(f"{role}: expected a list of layers' names, got {layers!r}")
        modules = dict(self.inner.named_modules())
        self.layers = tuple(layer if layer in modules else _plain(layer) for layer in layers)
        for layer in self.layers:
            if layer not in modules:
                near = difflib.get_close_matches(layer, modules, 3, 0.4)
                near += [name for name in modules if name.endswith(f".{layer.rsplit('.')[-1]}")][:3]
                raise ValueError(
                    f"{role}: {type(self.inner).__name__} has no layer {layer!r}; "
                    + (f"near: {', '.join(dict.fromkeys(near))}" if near else "see named_modules()")
                )
            if isinstance(modules[layer], _BatchNorm):
                warnings.warn(
                    f"{role}: layer {layer!r} is a batch normalisation, whose means over boxes are near zero and say "
                    "little of an instance; watch the activation or convolution behind it",
                    stacklevel=4,
                )
        self.taps = [_Tap() for _ in self.layers]
        self._last = self.taps[-1]
        # Sharded networks (FSDP) count on every block's end.
        self.ends_early = not any(type(module).__name__.startswith(_SHARDED) for module in self.inner.modules())
        self._hooks = [modules[n].register_forward_hook(tap) for n, tap in zip(self.layers, self.taps, strict=True)]

    def take(self) -> list[Tensor]:
        """The maps of the last forward pass, in the order of the layers; forgets them, and with them their graph.

        Raises:
            RuntimeError: for layers that have not run since the last call, and maps that were changed in place.
        """
        missing = [layer for layer, tap in zip(self.layers, self.taps, strict=True) if tap.value is None]
        if missing:
            self.forget()
            raise RuntimeError(
                f"{self.role}: layers {', '.join(missing)} have not run since the last call; run the network first, "
                "and build the distiller before the first call of a compiled network"
            )
        for layer, tap in zip(self.layers, self.taps, strict=True):
            if tap.versions is not None and tap.versions != _versions(tap.value):
                self.forget()
                raise RuntimeError(
                    f"{self.role}: the output of layer {layer!r} was changed in place by what comes behind it; watch "
                    "the layer that changed it (an activation with inplace=True), or give it inplace=False"
                )
        maps = [maps_in(tap.value) for tap in self.taps]
        self.forget()
        for layer, found in zip(self.layers, maps, strict=True):
            if not found:
                raise RuntimeError(f"{self.role}: expected maps [N,C,H,W] from layer {layer!r}, got none")
        return [feature for found in maps for feature in found]

    def forget(self) -> None:
        """Drop what the taps hold."""
        for tap in self.taps:
            tap.value = tap.versions = None

    def maps(self, images: Tensor, *, plain: bool = False) -> list[Tensor]:
        """Run the network and take its maps; where it is eager it ends behind the last watched layer.

        Args:
            images: [N,3,H,W].
            plain: without the network's wrappers.
        """
        self.forget()
        self._last.stop = self.ends_early
        try:
            with contextlib.suppress(_LastLayer):
                self.run(self.inner if plain else self.network, images)
            return self.take()
        finally:
            self._last.stop = False

    @torch.no_grad()
    def example(self, images: Tensor) -> list[Tensor]:
        """The maps of example images, in evaluation mode, without wrappers; also learns which layer runs last.

        Raises:
            ValueError: for a layer that runs several times.
        """
        order: list[_Tap] = []
        modules = dict(self.inner.named_modules())
        watching = [
            modules[layer].register_forward_hook(lambda *_, tap=tap: order.append(tap))
            for layer, tap in zip(self.layers, self.taps, strict=True)
        ]
        try:
            with evaluating(self.inner):
                self.run(self.inner, images)
            several = [layer for layer, tap in zip(self.layers, self.taps, strict=True) if order.count(tap) > 1]
            if several:
                raise ValueError(
                    f"{self.role}: layer {several[0]!r} runs several times in a forward pass; watch what comes before"
                )
            return self.take()
        finally:
            for hook in watching:
                hook.remove()
            self._last = order[-1] if order else self.taps[-1]

    def remove(self) -> None:
        """Take the hooks off the network."""
        self.forget()
        for hook in self._hooks:
            hook.remove()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Any:
    """Within, the network is in evaluation mode; then each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def maps_in(value: Any) -> list[Tensor]:
    """The maps [N,C,H,W] in a module's output: a tensor, a list, a dictionary, or these within each other."""
    if isinstance(value, Tensor):
        return [value] if value.dim() == 4 else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [found for item in items for found in maps_in(item)]


def _versions(value: Any) -> list[int] | None:
    maps = maps_in(value)
    return None if any(found.is_inference() for found in maps) else [found._version for found in maps]


def _plain(layer: str) -> str:
    """A layer's name without the prefixes of wrappers."""
    return ".".join(part for part in layer.removeprefix("module.").split(".") if part != "_orig_mod")
