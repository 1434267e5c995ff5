import pytest
import torch

from gkd_fast import ops

WEIGHTS = (5.0, 0.5, 0.25, 1.5)


def inputs(levels=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    counts = draw(2, levels) * 4
    counts[0, 0] = 0.0
    tensors = draw(levels), draw(2, levels), draw(), counts
    return [t.requires_grad_() for t in tensors[:3]] + [counts], draw(levels) + 0.5, draw() * 9


def by_loops(discrepancy, squares, divergence, counts, variances, rows, kappa, least):
    features = [
        sum(s / (max(n, least) * v) for s, n, v in zip(squares[k], counts[k], variances, strict=True)) for k in (0, 1)
    ]
    attenuated = [kappa * w * x for w, x in zip(WEIGHTS, (sum(discrepancy), *features), strict=False)]
    return torch.stack([*attenuated, WEIGHTS[3] * divergence / max(rows, 1.0)])


@pytest.mark.parametrize("rows", [0.0, 7.0])
def test_equals_loops_and_its_gradient(rows):
    given, variances, kappa = inputs()
    options = {"weights": WEIGHTS, "least": 0.125, "variances": variances, "rows": given[2].detach() * 0 + rows}
    terms = ops.loss_terms(*given, **options, kappa=kappa)
    torch.testing.assert_close(torch.stack(terms), by_loops(*given, variances, torch.tensor(rows), kappa, 0.125))
    assert torch.autograd.gradcheck(lambda *sums: ops.loss_terms(*sums, given[3], **options, kappa=kappa), given[:3])
    torch.testing.assert_close(terms, ops.loss_terms(*given, **options, kappa=kappa.item()))


def test_what_there_is_not_gives_nothing():
    (_, squares, _, counts), _, _ = inputs(dtype=torch.float32)
    terms = ops.loss_terms(None, squares, None, counts, weights=WEIGHTS, least=1.0)
    assert terms[0] == terms[3] == 0
    torch.testing.assert_close(terms[1], WEIGHTS[1] * (squares[0] / counts[0].clamp(min=1)).sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"squares": torch.ones(3, 3)}, "squares: expected first dimension = 2, got 3"),
        ({"counts": torch.ones(2, 4)}, "counts: expected L = 3, got 4"),
        ({"discrepancy": torch.ones(3, 1)}, r"discrepancy: expected shape \[L\], got \(3, 1\)"),
        ({"variances": torch.ones(3, dtype=torch.bfloat16)}, "variances: expected torch.float32 or torch.float64"),
        ({"kappa": torch.ones(1)}, r"kappa: expected a scalar, got shape \(1,\)"),
        ({"rows": torch.ones(())}, "rows: expected with the divergence alone"),
        ({"weights": (1.0, 2.0)}, "weights: expected terms = 4, got 2"),
        ({"least": 0.0}, "least: expected a positive number, got 0.0"),
    ],
)
def test_errors(change, message):
    given = {"discrepancy": torch.ones(3), "squares": torch.ones(2, 3), "divergence": None, "counts": torch.ones(2, 3)}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.loss_terms(**given | {"weights": WEIGHTS, "least": 1.0} | change)


def test_one_graph():
    def total(*sums, counts, rows):
        return torch.stack(ops.loss_terms(*sums, counts, weights=WEIGHTS, least=1.0, rows=rows)).sum()

    torch._dynamo.reset()
    (*sums, counts), _, rows = inputs(dtype=torch.float32)
    both = total, torch.compile(total, fullgraph=True, backend="aot_eager")
    results = [function(*sums, counts=counts, rows=rows) for function in both]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(result, sums) for result in results))


@pytest.mark.parametrize("missing", [False, True])
def test_opcheck_and_the_gradient_in_closed_form(missing):
    (*sums, counts), variances, kappa = inputs(levels=1 if missing else 3)
    fixed = counts, *((None,) * 3 if missing else (variances, kappa * 3, kappa)), list(WEIGHTS), 0.5
    raw, given = torch.ops.gkd_fast, [each.detach() for each in sums]
    torch.library.opcheck(raw.loss_terms.default, (*given, *fixed))
    gradient = torch.arange(1.0, 5.0, dtype=torch.float64)
    torch.library.opcheck(raw.loss_terms_backward.default, (gradient, *fixed))
    if not missing:
        options = {"weights": WEIGHTS, "least": 0.5, "variances": variances, "rows": kappa * 3, "kappa": kappa}
        total = torch.stack(ops.loss_terms(*sums, counts, **options))
        found = raw.loss_terms_backward(gradient, *fixed)
        torch.testing.assert_close(found, torch.autograd.grad(total, sums, gradient))
