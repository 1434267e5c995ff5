"""Everything that is launched is in the list of forms that are built ahead of time."""

import pytest
import torch
from kernel_cases import LAYOUTS, boxes_of, draw, laid_out, leaf, pyramid
from triton.runtime.interpreter import InterpretedFunction

from gkd_fast import ops
from gkd_fast.kernels import (
    background_trust,
    channel_means,
    loss_terms,
    masked_imitation,
    pairwise_discrepancy,
    prototype_projection,
    robust_weights,
    soft_label_divergence,
    unit_rows,
    weight_map,
)
from gkd_fast.kernels._spec import TYPES

MODULES = (
    background_trust,
    channel_means,
    loss_terms,
    masked_imitation,
    pairwise_discrepancy,
    prototype_projection,
    robust_weights,
    soft_label_divergence,
    unit_rows,
    weight_map,
)
OTHERS = (
    background_trust,
    channel_means,
    loss_terms,
    masked_imitation,
    soft_label_divergence,
    weight_map,
)  # that take no vectors
LISTED = {name: spec.signatures for module in MODULES for name, spec in module.KERNELS.items()}
DTYPES = tuple(TYPES)


def kind(value):
    if isinstance(value, torch.Tensor):
        assert value.data_ptr() % 16 == 0
        return "*i64" if value.dtype == torch.int64 else f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were launched in a listed form; any other is an error."""
    names, run = set(), InterpretedFunction.run

    def listed_run(kernel, *arguments, grid, warmup, **configuration):
        schedule = [configuration[key] for key in ("num_warps", "num_stages")]
        constants = {key: value for key, value in configuration.items() if key in kernel.arg_names}
        types = {name: kind(value) for name, value in zip(kernel.arg_names, arguments, strict=False)}
        types |= dict.fromkeys(constants, "constexpr")
        forms = LISTED[kernel.__name__]
        assert any((types, constants, *schedule) == tuple(form) for form in forms), (kernel.__name__, types, constants)
        names.add(kernel.__name__)
        return run(kernel, *arguments, grid=grid, warmup=warmup, **configuration)

    monkeypatch.setattr(InterpretedFunction, "run", listed_run)
    with ops.use_backend("triton"):
        yield names


def test_vectors(launched):
    labels, offsets = torch.tensor([0, 1]), torch.tensor([0, 1, 3])
    for dtype in DTYPES:
        for other in DTYPES:
            for channels in (5, 72):
                x, y = draw(1, 2, channels, dtype=dtype), draw(1, 3, channels, dtype=other)
                ops.prototype_projection(x, y).sum().backward()
                t, q = draw(1, 2, 8, dtype=other), draw(1, 3, 8, dtype=other)
                loss, _ = ops.pairwise_discrepancy(x, t, y.detach(), q.detach(), labels, offsets)
                loss.sum().backward()
                rows = x[0].detach(), t[0].detach(), labels * 0, labels, draw(1, 3, channels), draw(1, 3, 8), offsets
                ops.robust_weights(*rows, most=2)
    of_maps = {name for module in OTHERS for name in module.KERNELS}
    assert launched == set(LISTED) - of_maps


@pytest.mark.parametrize("overlap", ["max", "last"])
def test_maps(launched, overlap):
    boxes, index = boxes_of(2, extent=(8.0, 8.0))
    for dtype in DTYPES:
        for other in DTYPES:
            for layout in LAYOUTS:
                maps = [
                    leaf(laid_out(pyramid(images=1, channels=8, sizes=((4, 4),), dtype=d)[0], form))
                    for d, form in ((dtype, layout), (other, "channels_last"), (other, "contiguous"))
                ]
                for teacher in maps[1:]:
                    sums = ops.masked_imitation(
                        maps[:1], [teacher], boxes, index, torch.ones(1, 2), [4], overlap=overlap
                    )
                    sums.foreground.sum().backward()
    assert launched == set(masked_imitation.KERNELS) | set(weight_map.KERNELS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spaces(launched, layout):
    rows = torch.randn(2, 3, 5), torch.randn(2, 3, 8)
    for dtype in DTYPES:
        for other in DTYPES:
            student, teacher = (
                [laid_out(f, layout) for f in pyramid(images=1, channels=c, sizes=((4, 4), (3, 3)), dtype=d)]
                for c, d in ((5, dtype), (8, other))
            )
            ops.background_trust(student, teacher, *rows, ops.channel_means(student), ops.channel_means(teacher))
    assert launched == set(background_trust.KERNELS | channel_means.KERNELS)


def test_logits(launched):
    weights, instance = torch.rand(3), torch.tensor([0, 1, -1])
    for dtype in DTYPES:
        for other in DTYPES:
            for binary in (False, True):
                student, teacher = draw(3, 5, dtype=dtype), draw(3, 5, dtype=other).detach()
                options = {"temperature": 2.0, "binary": binary}
                ops.soft_label_divergence(student, teacher, weights, instance, **options)[0].backward()
    assert launched == set(soft_label_divergence.KERNELS)


def test_terms(launched):
    squares = draw(2, 3)
    for kappa in (0.5, torch.tensor(0.5)):
        ops.loss_terms(None, squares, None, squares.detach(), weights=[1, 2, 3, 4], least=1, kappa=kappa)[1].backward()
    assert launched == set(loss_terms.KERNELS)
