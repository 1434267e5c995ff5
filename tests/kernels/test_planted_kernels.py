"""Mistakes planted in the kernels' own source: each is seen by the values, or by the check that it is there for."""

import importlib.util
import sys

import pytest
import torch
from checker import CheckError
from kernel_cases import pyramid

from gkd_fast import kernels, ops
from gkd_fast.kernels.launchers import LAUNCHERS

SIZES = ((3, 5), (2, 2), (1, 1))


def trust(seed=0, prototypes=7):
    student, teacher = (pyramid(channels=c, seed=seed + c, sizes=SIZES) for c in (6, 16))
    generator = torch.Generator().manual_seed(seed)
    rows = [2 + torch.randn(3, prototypes, c, generator=generator) for c in (6, 16)]
    rows[0][:, 0] = rows[1][:, 0] = 0.0  # counts only where rows may be filled up
    means = [2 + torch.randn(3, c, generator=generator) for c in (6, 16)]
    return [ops.background_trust(student, teacher, *rows, *means, filled=filled) for filled in (False, True)]


def channel_means():
    return [ops.channel_means(pyramid(channels=c, dtype=torch.bfloat16, sizes=SIZES)) for c in (6, 16)]


def row_weights():
    generator = torch.Generator().manual_seed(1)
    student, teacher, own, other = (
        torch.randn(*s, generator=generator) for s in ((9, 5), (9, 8), (3, 6, 5), (3, 6, 8))
    )
    level, labels = torch.arange(9) % 3, torch.arange(9) % 4
    offsets = torch.tensor([0, 1, 3, 5, 6])
    return [ops.robust_weights(student, teacher, level, labels, own, other, offsets, most=2)]


def discrepancy():
    generator = torch.Generator().manual_seed(6)
    student, teacher, own, other = (
        torch.randn(2, n, c, generator=generator) for n, c in ((9, 5), (9, 8), (6, 5), (6, 8))
    )
    leaves = [student.requires_grad_(), teacher.requires_grad_()]
    loss, omega = ops.pairwise_discrepancy(*leaves, own, other, torch.arange(9) % 4, torch.tensor([0, 1, 3, 5, 6]))
    return [loss.detach(), omega, *torch.autograd.grad(loss, leaves, torch.tensor([1.0, 2.0]))]


def soft_labels():
    generator = torch.Generator().manual_seed(2)
    student, teacher = (3 * torch.randn(21, 5, generator=generator) for _ in range(2))
    weights, instance = torch.randn(21, generator=generator), torch.arange(21) % 4 - 1
    found = []
    for binary in (False, True):
        leaf = student.clone().requires_grad_()
        total, count = ops.soft_label_divergence(leaf, teacher, weights, instance, temperature=2.0, binary=binary)
        found += [total.detach(), count, *torch.autograd.grad(total, leaf)]
    return found


def imitation():
    student, teacher = (pyramid(seed=seed, sizes=SIZES) for seed in (3, 4))
    leaves = [level.requires_grad_() for level in student]
    boxes, image = torch.tensor([[1.0, 2.0, 20.0, 17.0], [0.0, 0.0, 9.0, 30.0]]), torch.tensor([0, 1])
    squares, weights = ops.imitation_sums(leaves, teacher, boxes, image, torch.ones(3, 2), [4, 8, 16], levels="every")
    slopes = torch.arange(1.0, 7.0).view(2, 3)
    return [squares.detach(), weights, *torch.autograd.grad(squares, leaves, slopes)]


def terms():
    generator = torch.Generator().manual_seed(5)
    sums = [torch.rand(shape, generator=generator).requires_grad_() for shape in ((3,), (2, 3), ())]
    counts, variances = torch.rand(2, 3, generator=generator), 1 + torch.rand(3, generator=generator)
    options = {"weights": (5.0, 0.5, 0.25, 1.5), "least": 0.3, "kappa": torch.tensor(0.75)}
    found = ops.loss_terms(*sums, counts, variances=variances, rows=torch.tensor(4.0), **options)
    total = sum(n * term for n, term in enumerate(found, 1))
    return [*(term.detach() for term in found), *torch.autograd.grad(total, sums)]


BY_VALUES = [
    ("background_trust", trust, "products - shift[:, None]", "products"),
    ("background_trust", trust, "f.to(tl.float32) - mean[:, None]", "f.to(tl.float32)"),
    ("background_trust", trust, "1.0 - tl.abs(trust - cosine)", "1.0 - (trust - cosine)"),
    ("background_trust", trust, "tl.where(of_teacher, both, cosine)", "both"),
    ("background_trust", trust, "unit, mask=c < padded", "unit, mask=c < channels"),
    ("background_trust", trust, "absent = (filled != 0) &", "absent ="),
    ("background_trust", trust, "student_shifts_ptr) + level * prototypes", "student_shifts_ptr)"),
    ("channel_means", channel_means, "(begin + p).to", "p.to"),
    ("channel_means", channel_means, "count.to(tl.float32)", "parts.to(tl.float32)"),
    ("channel_means", channel_means, "cell + tile * BLOCK_X", "cell"),
    ("robust_weights", row_weights, "tl.load(level_ptr + row) * prototypes", "tl.load(level_ptr + row)"),
    ("robust_weights", row_weights, "tl.where(m < past, cosine, -2.0)", "cosine"),
    ("robust_weights", row_weights, "1.0 - tl.abs(student - teacher)", "1.0 - (student - teacher)"),
    ("pairwise_discrepancy", discrepancy, "sign * tl.load(omega_ptr", "tl.load(omega_ptr"),
    ("pairwise_discrepancy", discrepancy, "slope * inverse[None, :]", "slope"),
    (
        "pairwise_discrepancy",
        discrepancy,
        "tl.store(slopes_ptr + place, slope",
        "tl.store(slopes_ptr + place, difference * 2",
    ),
    ("soft_label_divergence", soft_labels, "(positive != 0) & (weight < 0.0)", "weight < 0.0"),
    ("soft_label_divergence", soft_labels, "softplus(s) - softplus(t)", "softplus(s)"),
    ("soft_label_divergence", soft_labels, "slope[:, None] * difference", "slope[:, None] * tl.abs(difference)"),
    ("soft_label_divergence", soft_labels, "tl.exp(t) * (t - s)", "tl.exp(s) * (t - s)"),
    ("loss_terms", terms, "tl.where(count < least, least, count)", "count"),
    ("loss_terms", terms, "kappa * global_weight * tl.sum", "global_weight * tl.sum"),
    ("loss_terms", terms, "squares_gradient_ptr + levels + level", "squares_gradient_ptr + level"),
    ("loss_terms", terms, "tl.load(gradient_ptr + 2)", "tl.load(gradient_ptr + 1)"),
    ("loss_terms", terms, "squares_ptr + levels + level", "squares_ptr + level"),
    ("masked_imitation", imitation, "tl.load(slope_ptr + levels)", "tl.load(slope_ptr)"),
    ("masked_imitation", imitation, "a_value, b_value = gradient.to", "a_value, b_value = (-gradient).to"),
]
BY_CHECKS = [
    ("channel_means", channel_means, "mean, mask=c < channels", "mean", "out of bounds"),
    ("robust_weights", row_weights, "(m < past)[:, None] & (c < channels)", "(c < channels)", "out of bounds"),
    ("pairwise_discrepancy", discrepancy, "mask=inside & (keep != 0)", "mask=inside | (keep != 0)", "duplicate store"),
    ("soft_label_divergence", soft_labels, "mask=i < programs, other=0.0", "mask=i >= 0, other=0.0", "out of bounds"),
    (
        "soft_label_divergence",
        soft_labels,
        "& (k < classes)[None, :]\n        tl.store",
        "\n        tl.store",
        "duplicate store",
    ),
    ("loss_terms", terms, "mask=level < discrepancies", "mask=level < BLOCK", "out of bounds"),
    ("masked_imitation", imitation, "kind % 2 * levels", "kind // 2 * levels", "duplicate store"),
]


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Lets the operators run a module's kernels with one piece of its source changed."""

    def planted(name, old, new):
        source = (tmp_path / f"planted_{name}.py").absolute()
        text = importlib.util.find_spec(f"{kernels.__name__}.{name}").origin
        with open(text) as file:
            sound = file.read()
        assert sound.count(old) >= 1, f"{name} has no {old!r}"
        source.write_text(sound.replace(old, new))
        spec = importlib.util.spec_from_file_location(source.stem, source)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, source.stem, module)
        spec.loader.exec_module(module)
        for launcher in LAUNCHERS:
            if LAUNCHERS[launcher].__module__.endswith(f".{name}"):
                monkeypatch.setitem(LAUNCHERS, launcher, getattr(module, launcher))

    return planted


def results(problem, backend):
    with ops.use_backend(backend):
        return problem()


def differ(problem):
    pairs = zip(results(problem, "triton"), results(problem, "reference"), strict=True)
    return any(not torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("problem", [trust, channel_means, row_weights, discrepancy, soft_labels, imitation, terms])
def test_sound_kernels_agree(problem):
    assert not differ(problem)


@pytest.mark.parametrize(("name", "problem", "old", "new"), BY_VALUES)
def test_values_differ(name, problem, old, new, plant):
    plant(name, old, new)
    assert differ(problem)


@pytest.mark.parametrize(("name", "problem", "old", "new", "report"), BY_CHECKS)
def test_a_check_reports(name, problem, old, new, report, plant):
    plant(name, old, new)
    with pytest.raises(CheckError) as caught:
        results(problem, "triton")
    assert caught.value.kind == report, str(caught.value)
