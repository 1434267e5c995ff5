import pytest
import torch
from kernel_cases import DTYPES, agree, draw

from gkd_fast import ops


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 33, 65, 40), (1, 63, 2, 100)])
def test_equals_reference(dtype, shape, checker):
    levels, instances, prototypes, channels = shape
    agree(
        ops.prototype_projection,
        draw(levels, instances, channels, dtype=dtype),
        draw(levels, prototypes, channels, dtype=dtype, seed=1),
    )
    assert {"projection_kernel", "projection_backward_kernel", "normalise_backward_kernel"} <= set(checker.launches)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 2, 0)])
def test_empty(shape):
    levels, instances, prototypes, channels = shape
    agree(ops.prototype_projection, draw(levels, instances, channels), draw(levels, prototypes, channels))


def test_mixed_dtypes():
    agree(ops.prototype_projection, draw(1, 5, 12, dtype=torch.bfloat16), draw(1, 3, 12))


def test_strided_and_misaligned():
    x = draw(5, 2, 9)
    agree(ops.prototype_projection, x.detach().transpose(0, 1).requires_grad_(), draw(2, 6, 9)[:, ::2].detach())
    odd = draw(2 * 5 * 8 + 1).detach()[1:].view(2, 5, 8)
    agree(ops.prototype_projection, odd.requires_grad_(), draw(2, 3, 8).detach())


def test_vectors_without_direction():
    x, y = draw(1, 4, 6).detach(), draw(1, 3, 6).detach()
    x[0, 1], x[0, 2], y[0, 0] = 0.0, 1e-12, 0.0
    cosine = agree(ops.prototype_projection, x.requires_grad_(), y.requires_grad_())[0]
    assert (cosine[0, 1:3] == 0).all()


def test_only_the_wanted_gradient(checker):
    x, y = draw(1, 4, 6), draw(1, 3, 6).detach()
    with ops.use_backend("triton"):
        ops.prototype_projection(x, y).sum().backward()
    assert checker.launches.count("projection_backward_kernel") == 1


def test_tf32_only_where_torch_may():
    x, y = draw(1, 8, 64).detach(), draw(1, 8, 64, seed=1).detach()
    with ops.use_backend("reference"):
        want = ops.prototype_projection(x.double(), y.double())
    errors, settings = [], torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            settings.fp32_precision = precision
            with ops.use_backend("triton"):
                errors.append((ops.prototype_projection(x, y) - want).abs().max().item())
    finally:
        settings.fp32_precision = before
    assert errors[0] < 1e-6 < errors[1] < 1e-3


def test_a_backward_pass_outside_the_context_stays_with_its_backend(checker):
    x, y = draw(1, 4, 6), draw(1, 3, 6)
    with ops.use_backend("triton"):
        cosine = ops.prototype_projection(x, y)
    with ops.use_backend("reference"):
        cosine.sum().backward()
    assert "projection_backward_kernel" in checker.launches
