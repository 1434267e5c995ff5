"""The published loops compute what the reference operators compute."""

import pytest
import torch

from bench.measuring.agreement import disagreement
from bench.measuring.passes import make_cotangents, run_pass
from bench.operators import published
from bench.operators.cases import CASES, build_case
from gkd_fast import ops

STRIDES = (4, 8, 16)
# Inside, across every border, wholly outside, without area, inverted, one cell, whole image.
BOXES = torch.tensor(
    [
        [5.0, 9.0, 30.0, 41.0],
        [-7.5, -3.0, 12.0, 90.0],
        [60.0, 40.0, 200.0, 120.0],
        [150.0, 130.0, 180.0, 170.0],
        [20.0, 20.0, 20.0, 20.0],
        [50.0, 30.0, 40.0, 22.0],
        [17.0, 17.0, 19.0, 18.5],
        [0.0, 0.0, 96.0, 64.0],
    ]
)
IMAGES = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])


@pytest.fixture(autouse=True)
def _reference():
    torch.manual_seed(0)
    with ops.use_backend("reference"):
        yield


def make_maps(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(2, 5, 64 // s, 96 // s, dtype=dtype, requires_grad=True) for s in STRIDES]


def assert_agree(loop, reference, leaves) -> None:
    outputs = reference()
    cotangents = make_cotangents(outputs)
    device = torch.device("cpu")
    _, truth = run_pass(reference, leaves, cotangents, device)
    _, result = run_pass(loop, leaves, cotangents, device)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in truth.gradients)
    assert disagreement(result, truth, leaves[0].dtype) is None


@pytest.mark.parametrize("op", CASES)
def test_every_case_agrees_with_its_baselines(op, tiny):
    case = build_case(op, tiny, torch.float32, torch.device("cpu"))
    calls = {i.name: i.call for i in case.implementations}
    cotangents = make_cotangents(calls["reference"]())
    truth = run_pass(calls["reference"], case.leaves, cotangents, case.device)[1]
    baselines = [name for name in ("torchvision", "published_loop") if name in calls]
    assert baselines
    for name in baselines:
        result = run_pass(calls[name], case.leaves, cotangents, case.device)[1]
        assert case.compare(result, truth) is None


@pytest.mark.parametrize("negative", ["clamp", "mirror"])
def test_box_mean_pool_of_boxes_anywhere(negative):
    maps = make_maps()
    assert_agree(
        lambda: (published.box_mean_pool(maps, BOXES, IMAGES, STRIDES, negative=negative),),
        lambda: (ops.box_mean_pool(maps, BOXES, IMAGES, STRIDES, negative=negative),),
        maps,
    )


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_masked_imitation_of_boxes_anywhere(overlap):
    student, teacher = make_maps(), [m.detach() for m in make_maps()]
    omega = torch.rand(len(STRIDES), len(BOXES), dtype=torch.float64)
    arguments = (student, teacher, BOXES, IMAGES, omega, STRIDES)
    for base_size in (56.0, 8.0):  # most boxes on the finest level; boxes on every level
        assert_agree(
            lambda base=base_size: published.masked_imitation(*arguments, overlap=overlap, base_size=base),
            lambda base=base_size: ops.masked_imitation(*arguments, overlap=overlap, base_size=base),
            student,
        )


def test_pairwise_discrepancy_with_padding_and_an_empty_class():
    student = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, 7, dtype=torch.float64, requires_grad=True)
    prototypes = [torch.randn(2, 9, channels, dtype=torch.float64) for channels in (5, 7)]
    labels, offsets = torch.tensor([0, 2, -1, 1, 0, 2]), torch.tensor([0, 4, 4, 9])
    arguments = (student, teacher, *prototypes, labels, offsets)
    assert_agree(
        lambda: published.pairwise_discrepancy(*arguments),
        lambda: ops.pairwise_discrepancy(*arguments),
        [student, teacher],
    )


@pytest.mark.parametrize("repeat", [False, True])
def test_matching_pursuit_with_candidates_and_padding(repeat):
    student, teacher = (torch.nn.functional.normalize(torch.randn(3, 20, d), dim=2) for d in (6, 9))
    count, candidates = torch.tensor([20, 13, 3]), torch.rand(3, 20) < 0.7
    options = {"picks": 6, "repeat": repeat, "candidates": candidates}
    expected = ops.matching_pursuit(student, teacher, count, **options)
    assert torch.equal(published.matching_pursuit(student, teacher, count, **options), expected)
