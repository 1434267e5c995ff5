"""Losses in float32, and steps with a number that is not finite: skipped, counted, named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run
from tiny_steps import CPU, make_config, make_step, weights

from bench.step.launches import Launches
from gkd_fast.cli import train
from gkd_fast.config import RunConfig
from gkd_fast.errors import InputError, RunError
from gkd_fast.training.optim import build_optimizer
from gkd_fast.training.precision import Precision, RunningStatistics
from gkd_fast.training.readback import BadSteps
from gkd_fast.training.step import TrainStep


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_losses_are_float32_under_autocast(detector: str) -> None:
    step, batches = make_step(make_config(detector, run={"amp": True}))
    features = []
    step.adapter.model.backbone.register_forward_hook(lambda *call: features.extend(call[2].values()))
    terms = step(batches[0], 1.0)
    assert {value.dtype for value in features} == {torch.bfloat16}
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert {parameter.dtype for parameter in step.trainable} == {torch.float32}


def spoil(step: TrainStep, name: str, value: float) -> None:
    """Multiply one distillation term."""
    terms = step.distiller.forward

    def spoilt(*arguments, **keywords):
        found = terms(*arguments, **keywords)
        return {**found, name: found[name] * value}

    step.distiller.forward = spoilt


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_step_changes_nothing(optimizer: str, first: bool) -> None:
    step, batches = make_step(make_config(optim={"optimizer": optimizer}))
    if not first:
        step(batches[0], 1.0)
    before = weights(step)
    moments = [{k: v.clone() for k, v in state.items()} for state in step.optimizer.state.values()]
    good = step.distiller.forward
    spoil(step, "gkd_foreground", float("nan"))
    step(batches[1], 1.0)
    after = weights(step)
    assert [name for name in before if not torch.equal(before[name], after[name]) and "tracked" not in name] == []
    if not first:
        for old, new in zip(moments, step.optimizer.state.values(), strict=True):
            assert all(torch.equal(old[name], new[name]) for name in old)
    step.distiller.forward = good
    step(batches[1], 1.0)
    assert all(value.isfinite().all() for value in weights(step).values())
    assert any(not torch.equal(value, before[name]) for name, value in weights(step).items())


def test_a_skipped_first_step_leaves_no_trace_in_the_momentum() -> None:
    results = []
    for skip in (True, False):
        parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = build_optimizer([parameter], make_config(optim={"optimizer": "sgd"}).optim, 0.1)
        if skip:
            parameter.grad = torch.tensor([float("nan"), 1.0])
            optimizer.found_inf = torch.tensor(1.0)
            optimizer.step()
        optimizer.found_inf = torch.tensor(0.0)
        parameter.grad = torch.tensor([0.5, -0.5])
        optimizer.step()
        results.append(parameter.detach().clone())
    assert torch.equal(*results)


def test_running_statistics_survive_a_bad_batch() -> None:
    norm = torch.nn.BatchNorm2d(3)
    statistics = RunningStatistics(norm)
    for value, finite in ((1.0, True), (float("nan"), False)):
        before = norm.running_mean.clone()
        statistics.save()
        norm(torch.full((2, 3, 4, 4), value))
        statistics.keep(torch.tensor(finite))
        assert torch.equal(norm.running_mean, before) is not finite
    assert norm.running_mean.isfinite().all()


def test_one_launch_saves_all_running_statistics_and_one_restores_them() -> None:
    network = torch.nn.Sequential(*(torch.nn.BatchNorm2d(channels) for channels in (3, 4, 5)))
    network.append(torch.nn.BatchNorm2d(6, track_running_stats=False))
    statistics = RunningStatistics(network)
    statistics.save()
    with Launches() as launches:
        statistics.save()
        statistics.keep(torch.tensor(True))
    assert launches.kernels == {"copy_": 1, "where": 1}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    network[1].running_mean = torch.full((4,), 7.0)  # as .to(...) does: another tensor
    statistics.save()
    for layer in network[:3]:
        layer.running_mean.fill_(float("nan"))
    statistics.keep(torch.tensor(False))
    assert torch.equal(network[1].running_mean, torch.full((4,), 7.0))
    assert all(torch.equal(layer.running_mean, torch.zeros(layer.num_features)) for layer in (network[0], network[2]))


def test_a_network_without_statistics_has_none_to_keep() -> None:
    for network in (torch.nn.Linear(2, 3), torch.nn.BatchNorm2d(3, track_running_stats=False)):
        statistics = RunningStatistics(network)
        statistics.save()
        statistics.keep(torch.tensor(False))


def test_clipping_leaves_the_norm_at_its_limit() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer([parameter], make_config(optim={"optimizer": "sgd"}).optim, 1.0)
    parameter.grad = torch.tensor([30.0, 40.0])
    finite, bad = Precision(RunConfig(), CPU).update(optimizer, [parameter], torch.ones(3), 5.0)
    assert finite
    assert not bad
    torch.testing.assert_close(parameter.detach(), torch.tensor([-3.0, -4.0]))


def test_bad_steps_in_a_row_end_the_run_with_the_term_and_the_images() -> None:
    watch = BadSteps(3, CPU)
    names = ["loss_box", "gkd_global"]
    wrong = torch.tensor([1.0, float("nan")])
    yes, no = torch.tensor(True), torch.tensor(False)
    for bad in (yes, yes, no, yes, yes):
        watch.add(names, wrong if bad else torch.ones(2), bad, [1, 2])
    with pytest.raises(RunError, match=r"got gkd_global not finite and 3 bad steps in a row .* images 7, 9; they"):
        watch.add(names, wrong, yes, [7, 9])


def test_a_gradient_that_is_not_finite_is_called_so() -> None:
    with pytest.raises(RunError, match="got a gradient not finite"):
        BadSteps(1, CPU).add(["loss_box"], torch.ones(1), torch.tensor(True), [0])


def test_the_run_stops_and_its_last_checkpoint_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = tiny_run("--log-steps 1 --checkpoint-steps 1 --bad-steps 2", train=16, val=4, side=96)
    distil = TrainStep.distil

    def spoilt(self: TrainStep, *arguments):
        terms = distil(self, *arguments)
        return {name: value * float("inf") for name, value in terms.items()} if broken and self.steps >= 5 else terms

    broken = True
    monkeypatch.setattr(TrainStep, "distil", spoilt)
    with pytest.raises(RunError, match=r"gkd_global and gkd_foreground and .* 2 bad steps in a row"):
        train.main([*options, "--output", str(tmp_path / "run")])
    broken = False
    train.main(["--resume", "--output", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["phase"] == "distilled" and "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[-1]["loss"] < float("inf")


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        Precision(RunConfig(amp=True, amp_dtype="fp16"), CPU)


def test_strided_depthwise_convolutions_are_our_own_where_they_get_a_gradient() -> None:
    precision = Precision(make_config(run={"amp": True}).run, CPU)
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    layers = {
        "strided": torch.nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=False),
        "dense": torch.nn.Conv2d(6, 6, 3, 2, 1),
        "plain": torch.nn.Conv2d(6, 6, 3, 1, 1, groups=6),
    }
    for name, layer in layers.items():
        with precision.student_pass(), Launches() as launches:
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert launches.kernels["depthwise_convolution"] == (name == "strided")
        inputs = [x, layer.weight]
        found = torch.autograd.grad(y.float().square().sum(), inputs)
        for gradient, exact in zip(found, torch.autograd.grad(layer(x).square().sum(), inputs), strict=True):
            assert (gradient - exact).norm() < 0.02 * exact.norm()
    with torch.no_grad(), precision.student_pass(), Launches() as launches:
        assert layers["strided"](x).dtype == torch.bfloat16
    assert launches.kernels["depthwise_convolution"] == 0


def test_frozen_weights_are_converted_once_and_again_when_they_change() -> None:
    precision = Precision(make_config(run={"amp": True}).run, CPU)
    frozen, trained = (torch.nn.Conv2d(3, 4, 3).requires_grad_(grad) for grad in (False, True))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad(), precision.autocast():
        plain = frozen(x)
    for _ in range(2):
        with torch.no_grad(), precision.student_pass(), Launches() as launches:
            assert torch.equal(frozen(x), plain)
        found = launches.kernels["_to_copy"]
    assert found == 1  # the image
    with torch.no_grad():
        frozen.weight.mul_(2)
    with torch.no_grad(), precision.student_pass():
        assert not torch.equal(frozen(x), plain)
    with precision.student_pass():
        trained(x).sum().backward()
    assert trained.weight.grad is not None
