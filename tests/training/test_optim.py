"""The optimisers' results and states are torch's; on the CPU without copies of channels-last weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gkd_fast.config import OptimConfig
from gkd_fast.training.optim import build_optimizer


def parameters(layout: torch.memory_format) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((6, 4, 3, 3), (6, 4, 1, 1), (5,), (7, 3))
    values = [torch.randn(shape) for shape in shapes]
    return [nn.Parameter(v.to(memory_format=layout) if v.dim() == 4 else v) for v in values]


def set_gradients(found: list[nn.Parameter], step: int) -> None:
    torch.manual_seed(step + 1)
    for parameter in found:
        drawn = torch.randn(parameter.shape)
        parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(drawn)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_channels_last_weights_are_updated_as_others_are(name: str) -> None:
    config = OptimConfig(optimizer=name, weight_decay=0.1)
    both = [parameters(layout) for layout in (torch.contiguous_format, torch.channels_last)]
    optimizers = [build_optimizer(found, config, 0.1) for found in both]
    both[1][0].grad = None
    for step in range(3):
        for found, optimizer in zip(both, optimizers, strict=True):
            set_gradients(found, step)
            if step == 1:
                found[0].grad = None
            optimizer.step()
    for plain, turned in zip(*both, strict=True):
        assert turned.shape == plain.shape
        assert turned.grad.shape == plain.grad.shape
        torch.testing.assert_close(turned, plain, rtol=0, atol=0)
    assert both[1][0].is_contiguous(memory_format=torch.channels_last)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    moment = next(value for value in states[1][0].values() if value.dim() == 4)
    assert moment.stride() == both[1][0].stride()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_state_from_a_file_is_gone_on_with(name: str) -> None:
    config = OptimConfig(optimizer=name)
    straight, stopped = parameters(torch.channels_last), parameters(torch.channels_last)
    first, second = build_optimizer(straight, config, 0.1), build_optimizer(stopped, config, 0.1)
    for step in range(3):
        set_gradients(straight, step)
        set_gradients(stopped, step)
        if step == 1:
            state = second.state_dict()
            second = build_optimizer(stopped, config, 0.1)
            second.load_state_dict(state)
        first.step()
        second.step()
    for one, other in zip(straight, stopped, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_skipped_step_changes_nothing(name: str) -> None:
    found = parameters(torch.channels_last)
    before = [parameter.detach().clone() for parameter in found]
    optimizer = build_optimizer(found, OptimConfig(optimizer=name), 0.1)
    set_gradients(found, 0)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(old, new) and old.stride() == new.stride() for old, new in zip(before, found, strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_copies_nothing(name: str) -> None:
    found = parameters(torch.channels_last)
    optimizer = build_optimizer(found, OptimConfig(optimizer=name), 0.1)
    set_gradients(found, 0)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        optimizer.step()
    calls = {(event.key, str(event.input_shapes[:1])) for event in seen.key_averages(group_by_input_shape=True)}
    assert f"aten::_fused_{name}_" in {key for key, _ in calls}
    of_weights = {(key, shape) for key, shape in calls if shape not in ("[]", "[[]]")}
    assert not {key for key, _ in of_weights} & {"aten::copy_", "aten::clone", "aten::contiguous"}
