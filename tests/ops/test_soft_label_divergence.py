import pytest
import torch

from gkd_fast import ops


def inputs(rows=9, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    student, teacher = (
        torch.randn(rows, classes, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) * 1.4 - 0.4
    return student.requires_grad_(), teacher, weights, torch.arange(rows) % 4 - 1


def by_loops(student, teacher, weights, instance, temperature, *, binary, positive):
    total = 0.0
    for s, t, weight, owner in zip(
        student.detach() / temperature, teacher / temperature, weights, instance, strict=True
    ):
        if owner < 0:
            continue
        if binary:
            p, q = t.sigmoid(), s.sigmoid()
            divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        else:
            p, q = t.softmax(0), s.softmax(0)
            divergence = (p * (p / q).log()).mean()
        total += temperature**2 * divergence * (max(weight, 0.0) if positive else weight)
    return total


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("positive", [False, True])
def test_equals_loops_and_its_gradient(backend, binary, positive):
    given, options = inputs(), {"binary": binary, "positive": positive}
    total, count = ops.soft_label_divergence(*given, temperature=3.0, **options)
    torch.testing.assert_close(total, by_loops(*given, 3.0, **options))
    assert count == (given[3] >= 0).sum()
    student, *rest = given
    assert torch.autograd.gradcheck(
        lambda s: ops.soft_label_divergence(s, *rest, temperature=3.0, **options)[0], (student,)
    )


@pytest.mark.parametrize("binary", [False, True])
def test_rows_that_do_not_count_may_hold_anything(backend, binary):
    student, teacher, weights, instance = inputs()
    want = ops.soft_label_divergence(student, teacher, weights, instance, temperature=1.0, binary=binary)[0]
    with torch.no_grad():
        for tensor in (student, teacher, weights):
            tensor[instance < 0] = torch.nan
    total, _ = ops.soft_label_divergence(student, teacher, weights, instance, temperature=1.0, binary=binary)
    assert torch.equal(total, want)
    (gradient,) = torch.autograd.grad(total, student)
    assert (gradient[instance < 0] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    student, teacher, weights, instance = inputs(dtype=dtype)
    given = student.detach(), teacher, weights, instance, 2.0, True, False
    torch.library.opcheck(torch.ops.gkd_fast.soft_label_divergence.default, given)
    gradient = torch.ones((), dtype=torch.promote_types(dtype, torch.float32))
    torch.library.opcheck(torch.ops.gkd_fast.soft_label_divergence_backward.default, (gradient, *given))
    vectors, rows, offsets = torch.randn(2, 9, 4).to(dtype), torch.randn(2, 3, 5, 4), torch.tensor([0, 2, 5])
    place = instance.clamp(min=0), torch.tensor([0, 1, 1]), instance
    torch.library.opcheck(torch.ops.gkd_fast.robust_weights.default, (*vectors, *place, *rows, offsets, 3))


def test_one_graph(backend):
    def divergence(student, teacher, weights, instance):
        return ops.soft_label_divergence(student, teacher, weights, instance, temperature=2.0)[0]

    torch._dynamo.reset()
    given = inputs(dtype=torch.float32)
    results = [f(*given) for f in (divergence, torch.compile(divergence, fullgraph=True, backend="aot_eager"))]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(result, given[0]) for result in results))


def test_bad_arguments():
    student, teacher, weights, instance = inputs()
    with pytest.raises(ValueError, match="teacher: expected K = 4, got 3"):
        ops.soft_label_divergence(student, teacher[:, :3], weights, instance, temperature=1.0)
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        ops.soft_label_divergence(student, teacher, weights, instance, temperature=0.0)
    with pytest.raises(ValueError, match="weights: expected S = 9, got 8"):
        ops.soft_label_divergence(student, teacher, weights[:8], instance, temperature=1.0)
