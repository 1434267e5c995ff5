import pytest
import torch
from ops_cases import leaf

from gkd_fast import ops


def inputs(*, levels=2, instances=13, sizes=(3, 0, 4, 1), student=6, teacher=9, dtype=torch.float64, seed=0):
    """Embeddings, sizes[c] prototypes of class c, labels that include padding and classes without any."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows, channels):
        return torch.randn(levels, rows, channels, generator=generator, dtype=torch.float64).to(dtype)

    offsets = torch.tensor([0, *sizes]).cumsum(0)
    labels = torch.randint(-1, len(sizes), (instances,), generator=generator)
    count = int(offsets[-1])
    embeddings = draw(instances, student), draw(instances, teacher)
    return *embeddings, draw(count, student), draw(count, teacher), labels, offsets


def by_loops(student, teacher, student_prototypes, teacher_prototypes, labels, offsets):
    levels, instances = student.shape[:2]
    loss, omega = (
        torch.zeros(levels, dtype=torch.float64),
        torch.zeros(levels, instances, dtype=torch.float64),
    )
    for level in range(levels):
        terms = []
        for i, label in enumerate(labels.tolist()):
            if label < 0:
                continue
            cosines = [
                torch.nn.functional.cosine_similarity(x[level, i].double(), p[level].double(), dim=1)
                for x, p in ((student, student_prototypes), (teacher, teacher_prototypes))
            ]
            own = slice(int(offsets[label]), int(offsets[label + 1]))
            if own.start == own.stop:
                omega[level, i] = 1.0
                continue
            weight = 1.0 - (cosines[0][own].max() - cosines[1][own].max()).abs()
            omega[level, i] = weight
            difference = (weight * cosines[0] - weight * cosines[1]).abs()
            terms += torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).tolist()
        loss[level] = sum(terms) / max(len(terms), 1)
    return loss, omega


@pytest.mark.parametrize("seed", range(3))
def test_equals_loops(backend, seed):
    arguments = inputs(seed=seed)
    assert {-1, 1} <= set(inputs(instances=100)[4].tolist())
    loss, omega = ops.pairwise_discrepancy(*arguments)
    want_loss, want_omega = by_loops(*arguments)
    torch.testing.assert_close(loss, want_loss)
    torch.testing.assert_close(omega, want_omega)


CASES = {
    "many": {"instances": 63, "sizes": (10,) * 13 + (0, 3), "student": 33, "teacher": 40},
    "wide": {"instances": 5, "sizes": (1000,), "student": 7, "teacher": 3},
    "one": {"levels": 1, "instances": 1, "sizes": (1,), "student": 1, "teacher": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_reference(case):
    arguments = inputs(**CASES[case])
    student, teacher = (leaf(t) for t in arguments[:2])
    results = []
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            loss, omega = ops.pairwise_discrepancy(student, teacher, *arguments[2:])
            gradients = torch.autograd.grad(loss @ torch.arange(1.0, len(loss) + 1).double(), (student, teacher))
            results.append((loss, omega, *gradients))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_large_differences_are_linear(backend):
    """Opposite networks: the differences pass 1, where smooth L1 turns straight."""
    direction = torch.eye(4, dtype=torch.float64)[:1].expand(1, 2, 4).contiguous()
    prototypes = torch.stack([direction[0, 0], -direction[0, 0]])[None]
    offsets, labels = torch.tensor([0, 2]), torch.zeros(2, dtype=torch.int64)
    loss, omega = ops.pairwise_discrepancy(direction, -direction, prototypes, prototypes, labels, offsets)
    torch.testing.assert_close(omega, torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(loss, torch.tensor([1.5], dtype=torch.float64))


def test_gradient_is_that_of_a_constant_omega(backend):
    """Omega is detached: the gradient is checked against the loss with omega held fixed."""
    arguments = inputs()
    student, teacher = (leaf(t) for t in arguments[:2])
    loss, omega = ops.pairwise_discrepancy(student, teacher, *arguments[2:])
    assert not omega.requires_grad
    got = torch.autograd.grad(loss.sum(), (student, teacher))

    offsets, labels = arguments[5], arguments[4]
    takes_part = (labels >= 0) & (offsets[labels.clamp(min=0) + 1] > offsets[labels.clamp(min=0)])

    def cosine(x, p):
        return torch.nn.functional.cosine_similarity(x[:, :, None], p[:, None], dim=3)

    s, t = cosine(student, arguments[2]), cosine(teacher, arguments[3])
    weight = omega[:, :, None]
    fixed = torch.nn.functional.smooth_l1_loss(weight * s, weight * t, reduction="none")[:, takes_part]
    want = torch.autograd.grad(fixed.mean(dim=(1, 2)).sum(), (student, teacher))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_padding_may_hold_nan(backend):
    arguments = inputs()
    student, teacher, labels = leaf(arguments[0]), arguments[1], arguments[4]
    labels[:3] = -1
    want, _ = ops.pairwise_discrepancy(student, teacher, *arguments[2:])
    with torch.no_grad():
        student[:, :3] = float("nan")
    loss, omega = ops.pairwise_discrepancy(student, teacher, *arguments[2:])
    torch.testing.assert_close(loss, want)
    assert (omega[:, :3] == 0).all()
    loss.sum().backward()
    assert (student.grad[:, :3] == 0).all()


@pytest.mark.parametrize("change", [{"instances": 0}, {"sizes": (0, 0)}, {"sizes": ()}, {"levels": 0}])
def test_nothing_to_compare(backend, change):
    arguments = inputs(instances=0) if "sizes" in change and not change["sizes"] else inputs(**change)
    student = leaf(arguments[0])
    loss, omega = ops.pairwise_discrepancy(student, *arguments[1:])
    assert (loss == 0).all()
    assert torch.equal(omega, (arguments[4] >= 0).double().expand(omega.shape))
    loss.sum().backward()
    assert (student.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_the_reference_s(dtype):
    arguments = inputs(instances=63, sizes=(10,) * 20, student=256, teacher=256, dtype=dtype)

    def run(backend, dtype):
        student = leaf(arguments[0].to(dtype))
        floating = [t.to(dtype) for t in arguments[1:4]]
        with ops.use_backend(backend):
            loss, omega = ops.pairwise_discrepancy(student, *floating, *arguments[4:])
            (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert gradient.dtype == dtype
        return loss, omega, gradient

    truth = run("reference", torch.float64)
    kernel, reference = (
        [(got.double() - want).square().mean().sqrt().item() for got, want in zip(run(name, dtype), truth, strict=True)]
        for name in ("cpu", "reference")
    )
    for error, budget, want in zip(kernel, reference, truth, strict=True):
        assert error <= max(1.001 * budget, torch.finfo(torch.float32).eps * want.abs().max().item())


def test_same_bits_for_any_number_of_threads():
    arguments = inputs(instances=63, sizes=(10,) * 20, student=33, dtype=torch.float32)
    student = leaf(arguments[0])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with ops.use_backend("cpu"):
                loss, omega = ops.pairwise_discrepancy(student, *arguments[1:])
            results.append((loss, omega, *torch.autograd.grad(loss.sum(), student)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_arguments():
    arguments = inputs()
    with pytest.raises(ValueError, match="student_prototypes: expected prototypes without gradient"):
        ops.pairwise_discrepancy(*arguments[:2], leaf(arguments[2]), *arguments[3:])
    with pytest.raises(TypeError, match=r"labels: expected torch.int64"):
        ops.pairwise_discrepancy(*arguments[:4], arguments[4].int(), arguments[5])
    with pytest.raises(ValueError, match="teacher_prototypes: expected P = 8, got 7"):
        ops.pairwise_discrepancy(*arguments[:3], arguments[3][:, :7], *arguments[4:])
