"""Values and gradients on the GPU against the reference in float64."""

import math

import pytest
import torch
from problems import BOXES, NAN, PROBLEMS, STRIDES

from bench.measuring.agreement import Result, disagreement, pick_disagreement
from gkd_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def truth_of(problem, dtype):
    rounded = problem.place(torch.device("cpu"), dtype).place(torch.device("cpu"), torch.float64)
    with ops.use_backend("reference"):
        return Result(*rounded.run())


def on_cpu(result):
    return Result(*([t.cpu() for t in tensors] for tensors in result))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients(name, dtype, channels_last, device):
    problem = PROBLEMS[name]()
    placed = problem.place(device, dtype, channels_last=channels_last)
    outputs, gradients = placed.run()
    assert all(g.dtype == dtype for g in gradients)
    assert all(g.stride() == leaf.stride() for g, leaf in zip(gradients, placed.leaves, strict=True))
    assert disagreement(on_cpu((outputs, gradients)), truth_of(problem, dtype), dtype) is None


@pytest.mark.parametrize("name", PROBLEMS)
def test_float32_errs_no_more_than_the_reference(name, device):
    problem = PROBLEMS[name]()
    placed = problem.place(device, torch.float32)
    truth = truth_of(problem, torch.float32)

    def error():
        outputs, gradients = placed.run()
        pairs = zip([*outputs, *gradients], [*truth.outputs, *truth.gradients], strict=True)
        return math.hypot(*(_relative(got.cpu().double(), expected.double()) for got, expected in pairs))

    ours = error()
    with ops.use_backend("reference"):
        theirs = error()
    # Sums of another order differ by a few roundings either way; 1e-6 is some ten of them.
    assert ours <= 2 * theirs + 1e-6


def _relative(got, expected):
    error, norm = (torch.linalg.vector_norm(t.nan_to_num()).item() for t in (got - expected, expected))
    return error / norm if norm else error


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_boxes(name, device):
    outputs, gradients = PROBLEMS[name](0).place(device, torch.float32).run()
    assert all(not t.isnan().any() for t in (*outputs, *gradients))


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("name", PROBLEMS)
def test_other_counts(name, count, device):
    problem = PROBLEMS[name](count)
    placed = problem.place(device, torch.float32)
    assert disagreement(on_cpu(placed.run()), truth_of(problem, torch.float32), torch.float32) is None


def test_a_box_of_nan(device):
    problem = PROBLEMS["box_mean_pool"]()
    problem.exact[0][3, 1] = NAN
    outputs, gradients = problem.place(device, torch.float32).run()
    assert outputs[0][:, 3].isnan().all()
    assert not outputs[0][:, torch.arange(BOXES) != 3].isnan().any()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("repeat", [False, True])
def test_matching_pursuit(repeat, device):
    generator = torch.Generator().manual_seed(5)
    student, teacher = (
        torch.nn.functional.normalize(torch.randn(9, 130, d, generator=generator), dim=2) for d in (40, 65)
    )
    count = torch.tensor([130, 130, 129, 64, 63, 11, 3, 1, 0])
    options = {"picks": 10, "repeat": repeat}
    with ops.use_backend("reference"):
        truth = ops.matching_pursuit(student.double(), teacher.double(), count, **options)
    picks = ops.matching_pursuit(student.to(device), teacher.to(device), count.to(device), **options).cpu()
    assert torch.equal(picks < 0, truth < 0)
    if not repeat:
        full = slice(0, 2)
        results = (Result([p[full]], []) for p in (picks, truth))
        assert pick_disagreement(*results, student[full], teacher[full], 10.0) is None
    assert (picks == truth).double().mean() > 0.9


def test_maps_of_more_than_2_to_the_31_elements(cuda):
    channels, height, width = 256, 1700, 1700
    images = 2**31 // (channels * height * width) + 1
    needed = 4 * images * channels * height * width * 2
    if torch.cuda.mem_get_info(cuda)[0] < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of free memory")
    maps = torch.zeros(images, channels, height, width, device=cuda, dtype=torch.bfloat16).requires_grad_()
    with torch.no_grad():
        maps[-1, :, -8:, -8:] = 1.0
    stride = STRIDES[0]
    box = torch.tensor([[width - 8.0, height - 8.0, width - 1.0, height - 1.0]], device=cuda) * stride
    image = torch.tensor([images - 1], device=cuda)
    means = ops.box_mean_pool([maps], box, image, [stride])
    assert (means == 1).all()
    (gradient,) = torch.autograd.grad(means.sum(), maps)
    torch.testing.assert_close(gradient[-1, :, -8:, -8:].float().sum().item(), float(channels), rtol=1e-2, atol=0)
    assert gradient[0].count_nonzero() == gradient[-1, :, :-8].count_nonzero() == 0
    del gradient
    crops = ops.multiscale_roi_align([maps.detach()], box, image, [stride], output_size=2)
    assert (crops[..., 1, 1] == 1).all()
    omega = torch.ones(1, 1, device=cuda)
    sums = ops.masked_imitation([maps.detach()], [torch.zeros_like(maps)], box, image, omega, [stride])
    assert (sums.foreground + sums.background).item() == 64 * channels
