"""Compiled steps: whole graphs within their budget, the same numbers, and loud errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from tiny_steps import CPU, make_config, make_step
from torch import nn

from gkd_fast.training import compile as compiling
from gkd_fast.training.compile import Compiler, compiles


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace whole graphs, but generate no code."""
    monkeypatch.setattr(compiling, "compile_fx", lambda graph, inputs: graph.forward)


def test_auto_compiles_on_a_gpu_alone() -> None:
    assert compiles("auto", torch.device("cuda"))
    assert not compiles("auto", CPU)
    assert compiles("on", CPU)
    assert not compiles("off", torch.device("cuda"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_compiled_step_computes_the_same(detector: str) -> None:
    found = []
    for choice in ("off", "on"):
        step, batches = make_step(make_config(detector, run={"compile": choice}, optim={"optimizer": "sgd"}))
        torch.manual_seed(1)
        terms = [{name: float(value) for name, value in step(batch, 1.0).items()} for batch in batches]
        found.append((terms, [p.detach().clone() for p in step.trainable]))
    (eager, eager_weights), (compiled, weights) = found
    for one, other in zip(eager, compiled, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    for one, other in zip(eager_weights, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert set(step.compiler.graphs.values()) == {1}
    parts = {name.split()[0] for name in step.compiler.graphs}
    assert parts == {"student", "teacher", "adapters", "distillation"}


@pytest.mark.usefixtures("quick")
def test_a_sharded_teacher_runs_as_it_is_beside_a_compiled_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "is_sharded", lambda parameters: not any(p.requires_grad for p in parameters))
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}))
    assert all(torch.isfinite(value) for value in step(batches[0], 1.0).values())
    assert step.compiler.graphs.keys() == {"student backbone", "student head", "adapters", "distillation loss"}
    assert set(step.compiler.graphs.values()) == {1}


@pytest.mark.usefixtures("quick")
def test_the_number_of_boxes_and_the_attenuation_need_no_other_graph() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}))
    counts = set()
    for number, (images, targets) in enumerate([*batches, *batches]):
        kept = [{**t, "boxes": t["boxes"][: 1 + number % 3], "labels": t["labels"][: 1 + number % 3]} for t in targets]
        counts.add(sum(len(t["labels"]) for t in kept))
        step((images, kept), 1 - number / 10)
    assert len(counts) > 2
    assert set(step.compiler.graphs.values()) == {1}


@pytest.mark.usefixtures("quick")
def test_fewer_than_two_instances_still_train() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}))
    images, targets = batches[0]
    empty = [{**t, "boxes": t["boxes"][:0], "labels": t["labels"][:0]} for t in targets]
    terms = step((images, empty), 1.0)
    assert all(value.isfinite() for value in terms.values())
    assert step.compiler.graphs["distillation loss"] == 0


@pytest.mark.usefixtures("quick")
def test_evaluation_runs_uncompiled() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}))
    step(batches[0], 1.0)
    graphs = dict(step.compiler.graphs)
    step.adapter.model.eval()
    with torch.no_grad():
        step.adapter.model([batches[0][0][0] / 255])
    assert step.compiler.graphs == graphs


@pytest.mark.usefixtures("quick")
def test_gradient_norms_of_compiled_parts() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on", "grad_norm_steps": 1}))
    terms = step(batches[0], 1.0)
    assert set(step.norms) == {*terms, "loss"}


def use(compiler: Compiler, call: Callable[[], object]) -> object:
    with compiler.active():
        return call()


@pytest.mark.usefixtures("quick")
def test_more_sizes_than_planned_are_an_error() -> None:
    compiler, network = Compiler(2), nn.Conv2d(3, 4, 3)
    compiler.add_module("student backbone", network)
    for side in (8, 16, 8, 16):
        use(compiler, lambda side=side: network(torch.zeros(1, 3, side, 8)))
    assert compiler.graphs == {"student backbone": 2}
    with pytest.raises(
        RuntimeError,
        match=r"--compile: student backbone did not compile: expected at most 2 graphs \(--size-buckets\).*24",
    ):
        use(compiler, lambda: network(torch.zeros(1, 3, 24, 8)))


@pytest.mark.usefixtures("quick")
def test_parts_have_budgets_of_their_own() -> None:
    compiler = Compiler(1)
    networks = [nn.Conv2d(3, 4, 3) for _ in range(12)]
    for number, network in enumerate(networks):
        compiler.add_module(f"part {number}", network)
    for network in networks:
        use(compiler, lambda network=network: network(torch.zeros(1, 3, 8, 8)))
    assert set(compiler.graphs.values()) == {1}


@pytest.mark.usefixtures("quick")
def test_a_part_that_breaks_its_graph_is_named() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum().item() > 0 else x

    call = Compiler(1).function("distillation loss", branches, lambda x: [])
    with pytest.raises(RuntimeError, match="--compile: distillation loss did not compile: "):
        call(torch.ones(3))


@pytest.mark.usefixtures("quick")
def test_rows_that_vary_share_a_graph() -> None:
    compiler, head = Compiler(1), nn.Linear(5, 2)
    compiler.add_module("box head", head, dynamic_rows=True)
    for rows in (5, 7, 2, 1, 0, 31):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(use(compiler, lambda x=x: head(x)), x @ head.weight.T + head.bias)
    assert compiler.graphs == {"box head": 1}


def test_generated_code_agrees_forward_and_backward() -> None:
    compiler = Compiler(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    compiler.add_module("student backbone", network)
    x = torch.randn(2, 3, 8, 8)
    plain = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    with compiler.active():
        compiled = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("quick")
def test_the_bank_may_change_its_size() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}))
    step(batches[0], 1.0)
    bank = step.distiller.bank
    names = ("student", "teacher", "image_ids", "boxes", "flipped")
    cut = {name: getattr(bank, name)[:, :-3].contiguous() for name in names}
    offsets = bank.class_offsets.clone()
    offsets[-1] -= 3
    step.distiller.bank = replace(bank, **cut, class_offsets=offsets)
    step(batches[1], 1.0)
    assert step.compiler.graphs["distillation loss"] == 1
