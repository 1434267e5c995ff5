"""Compiled parts of the networks: whole graphs, as many as planned, and never a silent fallback."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch._functorch.config
import torch.fx.experimental._config
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.compile_fx import compile_fx

from gkd_fast.detectors import DetectorAdapter
from gkd_fast.distiller import Distiller
from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.training.distributed import is_sharded

R = TypeVar("R")


def compiles(choice: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether to compile: ``auto`` does on a GPU, where compiling pays within minutes."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def compile_parts(
    adapter: DetectorAdapter, distiller: Distiller | None, budget: int, *, repeated_backward: bool
) -> Compiler:
    """Compile the dense parts of both networks and the loss of global knowledge.

    Args:
        adapter: of the detector that is trained.
        distiller: its teacher and loss, if any; a sharded teacher runs as it is, for gathering its blocks is no graph.
        budget, repeated_backward: see `Compiler`.
    """
    compiler = Compiler(budget, repeated_backward=repeated_backward)
    for name, (module, dynamic) in adapter.dense_parts().items():
        compiler.add_module(f"student {name}", module, dynamic_rows=dynamic)
    if distiller:
        teacher = distiller.detectors[1]
        whole = not is_sharded(teacher.model.parameters())
        for name, (module, dynamic) in teacher.dense_parts(teacher=True).items() if whole else ():
            compiler.add_module(f"teacher {name}", module, dynamic_rows=dynamic)
        if "gkd" in distiller.methods:
            method = distiller.methods["gkd"]
            compiler.add_module("adapters", method.adapters)
            method.objective = compiler.function("distillation loss", method.objective, _varying_rows)
    return compiler


def _varying_rows(
    student: Any,
    adapted: Any,
    teacher: Any,
    instances: Instances,
    soft: SoftPairs | None,
    bank: PrototypeBank,
    *_: Any,
    **__: Any,
) -> list[tuple[Tensor, int]]:
    """What changes from step to step in the arguments of `robust_distilling`: instances, logits and prototypes."""
    per_row = [*vars(instances).values(), *(vars(soft).values() if soft else ())]
    rows = [(tensor, 0) for tensor in per_row if isinstance(tensor, Tensor)]
    return [*rows, (bank.student, 1), (bank.teacher, 1)]


class Compiler:
    """Compiles parts of networks with fullgraph=True, one graph for every padded size of the batches.

    Modules are compiled in place but used so only inside `active`, in training steps; evaluation, with its other
    batch sizes and modes, runs them as they are.

    Args:
        budget: most graphs of a part.
        repeated_backward: whether graphs are run backward more than once (to measure gradients).
    """

    def __init__(self, budget: int, *, repeated_backward: bool = False) -> None:
        self.budget = budget
        self.graphs: dict[str, int] = {}
        self._modules: list[tuple[nn.Module, Callable[..., Any]]] = []
        self._settings = (
            torch._dynamo.config.patch(
                recompile_limit=budget + 1, fail_on_recompile_limit_hit=True, suppress_errors=False
            ),
            torch._functorch.config.patch(donated_buffer=not repeated_backward),
            # Two sizes that happen to be equal in one step are not one size.
            torch.fx.experimental._config.patch(use_duck_shape=False),
        )

    def add_module(self, name: str, module: nn.Module, *, dynamic_rows: bool = False) -> None:
        """Compile a module in place.

        Args:
            name: of the part, for messages.
            module: every size of its inputs is constant in a graph ...
            dynamic_rows: ... but the first one of its first argument, a number of boxes.
        """
        rows = (lambda inputs: [(inputs, 0)]) if dynamic_rows else (lambda *_: [])
        # Not module(...): while the module is active that is the compiled call itself.
        self._modules.append((module, self.function(name, module._call_impl, rows)))

    def function(
        self, name: str, function: Callable[..., R], rows: Callable[..., list[tuple[Tensor, int]]]
    ) -> Callable[..., R]:
        """Compile a function.

        Args:
            name: of the part, for messages.
            function: every size of its inputs is constant in a graph ...
            rows: ... but those that this gives for the same arguments, as tensors and their dimensions. Where one
                of them is 0 or 1 the function runs as it is: compilers take these sizes for constants.
        """
        compiled = torch.compile(
            _with_code_of_its_own(function, name), fullgraph=True, dynamic=False, backend=self._backend(name)
        )

        def call(*args: Any, **kwargs: Any) -> R:
            varying = rows(*args, **kwargs)
            if any(tensor.shape[dimension] < 2 for tensor, dimension in varying):
                return function(*args, **kwargs)
            for tensor, dimension in varying:
                torch._dynamo.mark_dynamic(tensor, dimension)
            try:
                return compiled(*args, **kwargs)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                raise RuntimeError(f"--compile: {name} did not compile: {_cause(error)}") from error

        return call

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use the compiled modules, forward and backward."""
        with ExitStack() as stack:
            for setting in self._settings:
                stack.enter_context(setting)
            for module, call in self._modules:
                module._compiled_call_impl = call
            try:
                yield
            finally:
                for module, _ in self._modules:
                    module._compiled_call_impl = None

    def _backend(self, name: str) -> Callable[..., Any]:
        self.graphs[name] = 0

        def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            if self.graphs[name] == self.budget:
                shapes = ", ".join(str(list(value.shape)) for value in inputs if isinstance(value, Tensor))
                raise RuntimeError(
                    f"expected at most {self.budget} graphs (--size-buckets), one a padded size of the batches; "
                    f"one more is needed for inputs of {shapes[:200]}"
                )
            self.graphs[name] += 1
            return compile_fx(graph, inputs)

        return compile_graph


def _with_code_of_its_own(function: Callable[..., R], name: str) -> Callable[..., R]:
    """A function that calls `function`; dynamo counts the graphs of a code object, so every part needs its own."""

    def call(*args: Any, **kwargs: Any) -> R:
        return function(*args, **kwargs)

    code = call.__code__.replace(co_name=name.replace(" ", "_"))
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def _cause(error: BaseException) -> str:
    """The first line of what lies at the root of a compiler's error."""
    while error.__cause__ is not None or getattr(error, "inner_exception", None) is not None:
        error = getattr(error, "inner_exception", None) or error.__cause__  # type: ignore[assignment]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
