"""An adapter runs a detector with parts of its own and leaves it as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_detectors import make_batch, small
from torch import Tensor, nn

from gkd_fast import ops
from gkd_fast.detectors import adapt, build_detector
from gkd_fast.detectors.opened import Float32, with_parts

DETECTORS = ["faster_rcnn", "retinanet"]


def make_model(detector: str) -> nn.Module:
    """With scores that differ, so that it detects something."""
    torch.manual_seed(0)
    model = build_detector(small(detector, freeze_norm=True), 3)  # a pass changes no statistics
    for name, parameter in model.named_parameters():
        if "cls_logits" in name and "bias" in name:
            nn.init.normal_(parameter)
    return model.eval()


def contents(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything that a network is made of but its weights: modules, hooks, modes, samplers."""
    return {
        name: {
            key: {**item} if isinstance(item, dict) else item
            for key, item in vars(module).items()
            if key not in ("_parameters", "_buffers")
        }
        for name, module in model.named_modules()
    }


def same_weights(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def detections(model: nn.Module) -> list[dict[str, Tensor]]:
    images, _ = make_batch()
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model([image / 255 for image in images])
    model.train(training)
    return found


def is_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(one[name], other[name]) for one, other in pairs for name in other)


def train_pass(model: nn.Module) -> None:
    adapter = adapt(model)
    images, targets = make_batch()
    own = adapter.train_pass(adapter.batch(images), targets)
    sum(own.losses.values()).backward()


def distil(model: nn.Module) -> None:
    student = adapt(make_model("faster_rcnn" if hasattr(model, "roi_heads") else "retinanet").train())
    teacher = adapt(model)
    images, targets = make_batch()
    batch = student.batch(images)
    student.soft_pairs(student.train_pass(batch, targets), teacher, teacher.pyramid(batch))


def detect(model: nn.Module) -> None:
    assert detections(adapt(model).opened())


def fail(model: nn.Module) -> None:
    adapter = adapt(model)
    images, targets = make_batch()
    with pytest.raises((KeyError, ValueError), match="labels"):
        adapter.train_pass(adapter.batch(images), [{"boxes": target["boxes"]} for target in targets])


@pytest.mark.parametrize("use", [adapt, train_pass, distil, detect, fail])
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_model_stays_as_it_was(detector: str, use: Callable[[nn.Module], object]) -> None:
    model = make_model(detector).train()
    expected = detections(model)
    before, weights = contents(model), copy.deepcopy(model.state_dict())
    use(model)
    use(model)
    assert contents(model) == before
    assert same_weights(model.state_dict(), weights)
    assert is_same(detections(model), expected)
    assert any(len(found["boxes"]) for found in expected)


@pytest.mark.parametrize("detector", DETECTORS)
def test_an_adapted_model_can_be_copied_and_pickled(detector: str) -> None:
    model = make_model(detector)
    adapter = adapt(model)
    detections(adapter.opened())
    pickled = pickle.dumps(model)
    assert b"gkd_fast.detectors.opened" not in pickled
    for twin in (copy.deepcopy(model), pickle.loads(pickled)):
        assert is_same(detections(twin), detections(model))
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert is_same(detections(copy.deepcopy(adapter).opened()), detections(adapter.opened()))
    assert is_same(detections(pickle.loads(pickle.dumps(adapter)).opened()), detections(adapter.opened()))


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_are_those_of_a_model_with_the_parts_in_it(detector: str) -> None:
    changed = make_model(detector)
    if detector == "faster_rcnn":
        pool = changed.roi_heads.box_roi_pool
        changed.roi_heads.box_roi_pool = ops.MultiScaleRoIAlign(
            pool.featmap_names, pool.output_size, pool.sampling_ratio
        )
    adapter = adapt(make_model(detector))
    found, expected = detections(adapter.opened()), detections(changed)
    if detector == "retinanet":  # whose untrained scores are equal: which of them come first is anybody's choice
        found, expected = ([{"scores": image["scores"]} for image in images] for images in (found, expected))
    assert is_same(found, expected)


@pytest.mark.parametrize("detector", DETECTORS)
def test_heads_give_float32_under_autocast(detector: str) -> None:
    adapter = adapt(make_model(detector))
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = detections(adapter.model), detections(adapter.opened())
    assert {value.dtype for image in found for value in (image["boxes"], image["scores"])} == {torch.float32}
    assert not is_same(found, plain)


def test_the_opened_detector_follows_the_model() -> None:
    model = make_model("faster_rcnn")
    adapter = adapt(model)
    model.train()
    assert adapter.opened().training
    assert adapter.opened().rpn.training
    model.eval()
    model.roi_heads.detections_per_img = 3
    model.roi_heads.box_predictor.cls_score.weight.data.normal_()
    opened = adapter.opened()
    assert not opened.training
    assert not opened.roi_heads.training
    assert max(len(found["boxes"]) for found in detections(opened)) == 3
    assert isinstance(opened.roi_heads.box_roi_pool, ops.MultiScaleRoIAlign)
    for found, expected in zip(detections(opened), detections(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_hooks_of_the_user_run_in_a_pass() -> None:
    model = make_model("faster_rcnn").train()
    ran = []
    for name in ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    train_pass(model)
    assert sorted(ran) == sorted(["backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"])


def test_parts_are_those_of_the_new_module_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    module.register_buffer("scale", torch.ones(1))
    twin = with_parts(module, **{"1": nn.Identity(), "note": "new"})
    assert isinstance(module[1], nn.ReLU)
    assert not hasattr(module, "note")
    assert twin[0] is module[0]
    assert twin.scale is module.scale


def test_float32_reaches_into_what_a_head_returns() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"maps": [x, x], "pair": (x, None)}

    found = Float32(Head())(torch.zeros(2, dtype=torch.bfloat16))
    assert [value.dtype for value in found["maps"]] == [torch.float32] * 2
    assert found["pair"][1] is None
    assert found["pair"][0].dtype == torch.float32
