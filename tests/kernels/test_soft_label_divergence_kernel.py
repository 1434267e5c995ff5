import pytest
import torch
from kernel_cases import DTYPES, NAN, agree, draw

from gkd_fast import ops


def inputs(rows=21, classes=5, dtypes=DTYPES[:1] * 2):
    generator = torch.Generator().manual_seed(4)
    student, teacher = ((4 * draw(rows, classes, dtype=d, seed=n)).detach() for n, d in enumerate(dtypes))
    weights = torch.rand(rows, generator=generator) * 1.4 - 0.4
    instance = torch.randint(-1, 3, (rows,), generator=generator)
    return student.requires_grad_(), teacher, weights, instance


def divergence(**options):
    return lambda s, t, w, i: ops.soft_label_divergence(s, t, w, i, temperature=2.0, **options)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtypes", [*((d, d) for d in DTYPES), (torch.bfloat16, torch.float32)])
def test_equals_reference(binary, positive, dtypes, checker):
    agree(divergence(binary=binary, positive=positive), *inputs(dtypes=dtypes))
    assert checker.launches == ["divergence_kernel", "divergence_sum_kernel", "divergence_backward_kernel"]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (9, 300), (0, 4)])
def test_sizes(binary, shape):
    agree(divergence(binary=binary), *inputs(*shape))


@pytest.mark.parametrize("binary", [False, True])
def test_rows_that_do_not_count_may_hold_anything(binary):
    student, teacher, weights, instance = inputs()
    with torch.no_grad():
        for tensor in (student, teacher, weights):
            tensor[instance < 0] = NAN
    total, count = agree(divergence(binary=binary), student, teacher, weights, instance)
    assert total.isfinite()
    assert count == (instance >= 0).sum()


@pytest.mark.parametrize("binary", [False, True])
def test_large_logits(binary):
    student, teacher, weights, instance = inputs()
    agree(divergence(binary=binary), (40 * student.detach()).requires_grad_(), 40 * teacher, weights, instance)
