import pytest
import torch
from ops_cases import leaf

from gkd_fast import ops

SHAPES = [(1, 1, 1, 1), (2, 63, 100, 33), (3, 13, 7, 64), (1, 50, 1000, 5)]


def inputs(shape, dtype=torch.float64, seed=0):
    levels, instances, prototypes, channels = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(levels, instances, channels, generator=generator, dtype=torch.float64)
    p = torch.randn(levels, prototypes, channels, generator=generator, dtype=torch.float64)
    return x.to(dtype), p.to(dtype)


def by_loops(x, p):
    out = torch.zeros(x.shape[0], x.shape[1], p.shape[1], dtype=torch.float64)
    for level in range(x.shape[0]):
        for i, a in enumerate(x[level].double()):
            for m, b in enumerate(p[level].double()):
                lengths = a.norm() * b.norm()
                out[level, i, m] = a @ b / lengths if min(a.norm(), b.norm()) >= 1e-8 else 0.0
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 9, 14, 33)])
def test_equals_loops(backend, shape):
    x, p = inputs(shape)
    x[0, 0] *= 1e-12
    torch.testing.assert_close(ops.prototype_projection(x, p), by_loops(x, p))


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_reference(shape):
    x, p = (leaf(t) for t in inputs(shape))
    weight = inputs((shape[0], shape[1], 1, shape[2]), seed=1)[0]
    results = []
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            cosine = ops.prototype_projection(x, p)
            results.append((cosine, *torch.autograd.grad(cosine, (x, p), weight)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradcheck(backend):
    x, p = (leaf(t) for t in inputs((2, 5, 4, 3)))
    assert torch.autograd.gradcheck(ops.prototype_projection, (x, p))
    assert torch.autograd.gradcheck(lambda a: ops.prototype_projection(a, p.detach()), (x,))
    assert torch.autograd.gradcheck(lambda b: ops.prototype_projection(x.detach(), b), (p,))


def test_short_vectors_have_no_cosine_and_no_gradient(backend):
    x, p = (leaf(t) for t in inputs((1, 3, 4, 8)))
    with torch.no_grad():
        x[0, 1] *= 1e-10
        p[0, 2] = 0.0
    cosine = ops.prototype_projection(x, p)
    assert (cosine[0, 1] == 0).all()
    assert (cosine[0, :, 2] == 0).all()
    cosine.sum().backward()
    assert (x.grad[0, 1] == 0).all()
    assert (p.grad[0, 2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_the_reference_s(dtype):
    x, p = (leaf(t) for t in inputs((2, 63, 100, 256), dtype))
    exact_x, exact_p = leaf(x.double()), leaf(p.double())
    weight = torch.randn(2, 63, 100, generator=torch.Generator().manual_seed(1))

    def run(a, b, backend):
        with ops.use_backend(backend):
            cosine = ops.prototype_projection(a, b)
            return cosine, *torch.autograd.grad(cosine, (a, b), weight.to(cosine.dtype))

    truth = run(exact_x, exact_p, "reference")
    errors = [
        [(g.double() - t).square().mean().sqrt().item() for g, t in zip(run(x, p, backend), truth, strict=True)]
        for backend in ("cpu", "reference")
    ]
    for kernel, reference in zip(*errors, strict=True):
        assert kernel <= 1.001 * reference  # inputs in half precision: both are off by the rounding of the result


def test_mixed_dtypes_and_gradient_dtypes(backend):
    x, p = inputs((2, 5, 4, 3))
    x, p = leaf(x.bfloat16()), leaf(p.float())
    cosine = ops.prototype_projection(x, p)
    assert cosine.dtype == torch.float32
    cosine.sum().backward()
    assert (x.grad.dtype, p.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("shape", [(2, 0, 4, 3), (2, 4, 0, 3), (0, 4, 4, 3)])
def test_empty(backend, shape):
    x, p = (leaf(t) for t in inputs(shape))
    cosine = ops.prototype_projection(x, p)
    assert cosine.shape == shape[:3]
    cosine.sum().backward()
    assert (x.grad == 0).all()
    assert (p.grad == 0).all()


def test_strided_inputs(backend):
    x, p = inputs((2, 7, 5, 6))
    want = ops.prototype_projection(x, p)
    got = ops.prototype_projection(x.transpose(1, 2).contiguous().transpose(1, 2), p.flip(2).flip(2))
    torch.testing.assert_close(got, want)


def test_same_bits_for_any_number_of_threads():
    x, p = (leaf(t) for t in inputs((2, 63, 100, 33), torch.float32))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with ops.use_backend("cpu"):
                cosine = ops.prototype_projection(x, p)
                results.append((cosine, *torch.autograd.grad(cosine.square().sum(), (x, p))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_arguments():
    x, p = inputs((2, 5, 4, 3))
    with pytest.raises(ValueError, match="prototypes: expected C = 3, got 2"):
        ops.prototype_projection(x, p[..., :2])
    with pytest.raises(ValueError, match="prototypes: expected L = 2, got 1"):
        ops.prototype_projection(x, p[:1])
    with pytest.raises(TypeError, match=r"embeddings: expected torch.float32 or"):
        ops.prototype_projection(x.long(), p)
