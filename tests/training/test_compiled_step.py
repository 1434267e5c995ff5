"""Compiled steps: one whole graph a padded size, the same numbers, and loud errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_steps import CPU, make_config, make_step
from torchvision.models.detection.anchor_utils import AnchorGenerator

from gkd_fast.detectors.faster_rcnn import _has_roi_align
from gkd_fast.training import compile as compiling
from gkd_fast.training.compile import AutoCompile, CompiledStep, pays
from gkd_fast.training.step import TrainStep


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace whole graphs, but generate no code."""
    compile_with = torch.compile

    def traced(function: Any, *, fullgraph: bool, dynamic: bool, mode: str | None) -> Any:
        return compile_with(function, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)


def make_settled_step(config: Any, **options: Any) -> Any:
    """A step whose teacher's units are measured in the first step alone, and two batches."""
    step, batches = make_step(config, **options)
    if step.distiller and step.distiller._units:
        step.distiller._units.steps = 1
    return step, batches


def drawn(batch: Any, keep: int | None = None) -> Any:
    """A batch whose images have their seeds, and so many boxes at most."""
    images, targets = batch
    kept = [{**t, "boxes": t["boxes"][:keep], "labels": t["labels"][:keep], "draw": t["image_id"]} for t in targets]
    return images, kept


def test_auto_compiles_on_a_gpu_where_it_is_won_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert AutoCompile("on", CPU, 1, None)()
    assert not AutoCompile("off", gpu, 1, 10**9)()
    assert not AutoCompile("auto", CPU, 1, 10**9)()
    assert not AutoCompile("auto", gpu, 1, None)()
    assert pays(100_000, 0.1, 4)
    assert not pays(1000, 0.1, 4)
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(compiling, "triton_failure", lambda: "")
    decide = AutoCompile("auto", gpu, 4, 20_000)  # 3 s in 15 steps
    found = [decide() for _ in range(30)]
    assert not any(found[:19])
    assert all(found[19:])
    decide = AutoCompile("auto", gpu, 4, 5000)
    assert not any(decide() for _ in range(30))
    monkeypatch.setattr(compiling, "triton_failure", lambda: "no C compiler")
    decide = AutoCompile("auto", gpu, 4, 20_000)
    with pytest.warns(UserWarning, match="not compiled, Triton does not run here: no C compiler"):
        assert not any(decide() for _ in range(30))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("detector", "method"), [("faster_rcnn", "gkd+fgd"), ("retinanet", "gkd+rkd"), ("faster_rcnn", "defeat+fgfi")]
)
def test_a_compiled_step_computes_the_same(detector: str, method: str) -> None:
    found = []
    for choice in ("off", "on"):
        config = make_config(detector, run={"compile": choice}, optim={"optimizer": "sgd"}, distill={"method": method})
        step, batches = make_settled_step(config)
        # Numbers of boxes and attenuation change from step to step, prototypes after the first.
        terms = []
        for number, (batch, keep) in enumerate(zip([*batches, batches[0]], (None, 1, 0), strict=True)):
            terms.append({k: float(v) for k, v in step(drawn(batch, keep), 1 - number / 4).items()})
            step.distiller.bank = fewer(step.distiller.bank)
        rings = step.distiller.rings
        found.append((terms, [p.detach().clone() for p in step.trainable], rings.rows() if rings else {}))
    (eager, eager_weights, eager_seen), (compiled, weights, seen) = found
    for number, (one, other) in enumerate(zip(eager, compiled, strict=True)):
        # Updates through batch normalisation enlarge roundings from step to step.
        assert one == pytest.approx(other, rel=1e-3 * 4**number, abs=1e-5)
    for one, other in zip(eager_weights, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=5e-4)
    assert bool(seen) == ("gkd" in method)
    for name, one in eager_seen.items():
        torch.testing.assert_close(one, seen[name], rtol=1e-2, atol=1e-2)
    assert len(step.compiled.seconds) == 1


def fewer(bank: Any) -> Any:
    """A bank without the last prototype."""
    if bank is None:
        return None
    names = ("student", "teacher", "image_ids", "boxes", "flipped")
    offsets = bank.class_offsets.clone()
    offsets[-1] -= 1
    return replace(bank, **{name: getattr(bank, name)[:, :-1] for name in names}, class_offsets=offsets)


@pytest.mark.usefixtures("quick")
def test_units_are_measured_uncompiled() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}))
    step.distiller._units.steps = 2
    for expected in (0, 0, 1):
        step(drawn(batches[0]), 1.0)
        assert len(step.compiled.seconds) == expected


@pytest.mark.usefixtures("quick")
def test_gradient_norms_are_measured_uncompiled() -> None:
    step, batches = make_settled_step(make_config("retinanet", run={"compile": "on", "grad_norm_steps": 2}))
    terms = step(drawn(batches[0]), 1.0)
    assert set(step.norms) == {*terms, "loss"}
    assert step.compiled.seconds == {}
    step(drawn(batches[1]), 1.0)
    assert step.norms == {}
    assert len(step.compiled.seconds) == 1


@pytest.mark.usefixtures("quick")
def test_evaluation_runs_uncompiled() -> None:
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}), distilled=False)
    step(drawn(batches[0]), 1.0)
    step.adapter.model.eval()
    with torch.no_grad():
        step.adapter.model([batches[0][0][0] / 255])
    step.adapter.model.train()
    step(drawn(batches[1]), 1.0)
    assert len(step.compiled.seconds) == 1


@pytest.mark.usefixtures("quick")
def test_anchors_that_move_in_the_first_step_need_no_second_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they come from the CPU; here from float64, which the first step changes as well."""
    made = AnchorGenerator.generate_anchors
    monkeypatch.setattr(AnchorGenerator, "generate_anchors", lambda *of, **how: made(*of, **how).double())
    step, batches = make_step(make_config("retinanet", run={"compile": "on"}), distilled=False)
    for _ in range(2):
        step(drawn(batches[0]), 1.0)
    assert step.compiled is not None
    assert len(step.compiled.seconds) == 1


def test_the_choice_of_roi_align_is_no_part_of_the_graph() -> None:
    """It looks at files and at the driver for a GPU, which a graph cannot."""

    def chosen(x: torch.Tensor) -> torch.Tensor:
        return x + int(_has_roi_align("cuda"))

    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), chosen(torch.zeros(2)))


def test_a_run_off_or_without_room_for_boxes_is_not_compiled() -> None:
    for choice, most in (("off", 9), ("auto", 9), ("on", None)):
        step, _ = make_step(make_config("retinanet", run={"compile": choice}), distilled=False)
        other = TrainStep(step.adapter, step.config, 1e-3, CPU, most=most)
        assert other.compiled is None


@pytest.mark.usefixtures("quick")
def test_the_time_of_a_graph_ends_with_its_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    step, clock = CompiledStep(lambda x: x.square().sum(), 2), iter((100.0, 103.0, 107.0))
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    x = torch.ones(1, 8, requires_grad=True)
    value = step(x)
    assert step.seconds == {(1, 8): 3.0}
    value.backward()
    step.backward_done()
    assert step.seconds == {(1, 8): 7.0}
    step(x).backward()
    step.backward_done()
    assert step.seconds == {(1, 8): 7.0}


@pytest.mark.usefixtures("quick")
def test_more_sizes_than_planned_are_an_error() -> None:
    step = CompiledStep(lambda x: x.square().sum(), 2)
    for side in (8, 16, 8, 16):
        assert step(torch.ones(1, side)) == side
    assert step.seconds.keys() == {(1, 8), (1, 16)}
    with pytest.raises(RuntimeError, match=r"--compile: expected at most 2 graphs \(--size-buckets\).*\[1, 24\]"):
        step(torch.ones(1, 24))


@pytest.mark.usefixtures("quick")
def test_more_graphs_than_a_code_object_has_room_for() -> None:
    step = CompiledStep(lambda x: x.sum(), 12)
    for side in range(1, 13):
        assert step(torch.ones(side)) == side


@pytest.mark.usefixtures("quick")
def test_a_second_graph_for_a_size_is_an_error() -> None:
    step = CompiledStep(lambda x, y: x.sum() + y.sum(), 2)
    step(torch.ones(3), torch.ones(4))
    with pytest.raises(RuntimeError, match=r"--compile: expected one graph for batches of \[3\]"):
        step(torch.ones(3), torch.ones(5))


@pytest.mark.usefixtures("quick")
def test_a_step_that_is_no_single_graph_is_an_error() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum().item() > 0 else x

    with pytest.raises(RuntimeError, match="--compile: the step did not compile: "):
        CompiledStep(branches, 1)(torch.ones(3))


def test_generated_code_agrees_forward_and_backward() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    step = CompiledStep(lambda x: network(x).square().sum(), 1)
    x = torch.randn(2, 3, 8, 8)
    gradients = partial(torch.autograd.grad, inputs=list(network.parameters()))
    for one, other in zip(gradients(network(x).square().sum()), gradients(step(x)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
