import pytest
import torch
from kernel_cases import DTYPES, NAN, agree, draw, leaf

from gkd_fast import ops


def inputs(*, levels=2, instances=13, sizes=(3, 0, 4, 1), student=6, teacher=9, dtype=torch.float32, other=None):
    """Embeddings, sizes[c] prototypes of class c, labels that include padding and classes without any."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    labels = torch.randint(-1, max(len(sizes), 1), (instances,), generator=torch.Generator().manual_seed(3))
    count = int(offsets[-1])
    return (
        draw(levels, instances, student, dtype=dtype),
        draw(levels, instances, teacher, dtype=other or dtype, seed=1),
        draw(levels, count, student, dtype=dtype, seed=2).detach(),
        draw(levels, count, teacher, dtype=other or dtype, seed=3).detach(),
        labels,
        offsets,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"instances": 40, "sizes": (10,) * 6 + (0, 20), "student": 33, "teacher": 72, "levels": 1},
        {"levels": 1, "instances": 1, "sizes": (1,), "student": 1, "teacher": 1},
    ],
)
def test_equals_reference(dtype, case, checker):
    arguments = inputs(dtype=dtype, **case)
    agree(ops.pairwise_discrepancy, *arguments)
    assert {"robust_weight_kernel", "discrepancy_kernel", "discrepancy_backward_kernel"} <= set(checker.launches)


def test_cases_are_what_they_should_be():
    labels, offsets = inputs()[4:]
    assert {-1, 1} <= set(labels.tolist())
    assert offsets[1] == offsets[2]


def test_many_channels_and_prototypes_in_parts():
    agree(ops.pairwise_discrepancy, *inputs(levels=1, instances=3, sizes=(70, 30), student=300, teacher=20))


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16])
def test_mixed_dtypes(other):
    agree(ops.pairwise_discrepancy, *inputs(other=other, levels=1))


@pytest.mark.parametrize("change", [{"instances": 0}, {"sizes": (0, 0)}, {"levels": 0}, {"instances": 0, "sizes": ()}])
def test_nothing_to_compare(change):
    loss, _ = agree(ops.pairwise_discrepancy, *inputs(**change))
    assert (loss == 0).all()


def test_labels_outside_the_classes_take_no_part():
    arguments = list(inputs())
    arguments[4] = torch.arange(13) - 3
    agree(ops.pairwise_discrepancy, *arguments)


def test_padding_may_hold_nan():
    student, *rest = inputs()
    rest[3][:4] = torch.tensor([-1, 1, -5, 99])
    student = student.detach()
    student[:, :4] = NAN
    student.requires_grad_()
    with ops.use_backend("triton"):
        loss, omega = ops.pairwise_discrepancy(student, *rest)
        loss.sum().backward()
    assert loss.isfinite().all()
    assert torch.equal(omega[0, :4], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert (student.grad[:, :4] == 0).all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_bad_instance_shows_in_the_loss(value):
    student, *rest = inputs(levels=1)
    rest[3].fill_(0)
    student = student.detach()
    student[0, 2, 1] = value
    with ops.use_backend("triton"):
        loss, omega = ops.pairwise_discrepancy(student, *rest)
    assert loss.isnan().all()
    assert omega[0, 2].isnan()
    assert omega.isfinite().sum() == 12


def test_zero_vectors():
    student, teacher, *rest = inputs()
    rest[2].fill_(2)
    with torch.no_grad():
        student[:, 0], teacher[:, 1], rest[0][:, -2] = 0.0, 1e-10, 0.0
    agree(ops.pairwise_discrepancy, student, teacher, *rest)
    assert (agree(ops.pairwise_discrepancy, student, teacher, *rest)[0] > 0).all()


def test_large_differences_are_linear():
    direction = torch.eye(4)[:1].expand(1, 2, 4).contiguous()
    prototypes = torch.stack([direction[0, 0], -direction[0, 0]])[None]
    offsets, labels = torch.tensor([0, 2]), torch.zeros(2, dtype=torch.int64)
    loss, _ = agree(ops.pairwise_discrepancy, leaf(direction), -direction, prototypes, prototypes, labels, offsets)
    torch.testing.assert_close(loss, torch.tensor([1.5]))


def test_strided():
    student, teacher, p, q, labels, offsets = inputs()
    student = student.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    double = labels.repeat_interleave(2)[::2]
    agree(ops.pairwise_discrepancy, student, teacher, p.repeat_interleave(2, 1)[:, ::2], q, double, offsets)


def test_gradients_only_where_they_are_wanted(checker):
    student, teacher, *rest = inputs()
    agree(ops.pairwise_discrepancy, student.detach(), teacher, *rest)
    assert checker.launches.count("discrepancy_backward_kernel") == 1


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float16, torch.bfloat16)])
def test_weights_of_rows(dtypes, checker):
    """Rows of several levels, a class without prototypes, padding, a vector without direction."""
    offsets, labels = torch.tensor([0, 4, 4, 25]), torch.tensor([0, 2, 1, -1, 2, 0, 2])
    level = torch.tensor([0, 1, 2, 0, 2, 1, 1])
    student, teacher = draw(7, 5, dtype=dtypes[0]).detach(), draw(7, 300, dtype=dtypes[1], seed=1).detach()
    student[4] = 0.0
    p, q = (draw(3, 25, c, seed=2).detach() for c in (5, 300))
    found = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend):
            found.append(ops.robust_weights(student, teacher, level, labels, p, q, offsets, most=21))
            instance = torch.tensor([6, 5, -1, 3, 2, 2, 0])
            options = {"most": 21, "instance": instance}
            found.append(ops.robust_weights(student, teacher, level, labels, p, q, offsets, **options))
    for got, want, own in zip(found[:2], found[2:], (labels, labels[instance].where(instance >= 0, -1)), strict=True):
        torch.testing.assert_close(got[own >= 0], want[own >= 0], rtol=1e-5, atol=1e-5)
    assert found[0][2] == found[1][4] == 1
    assert checker.launches == ["row_weight_kernel"] * 2
