"""Every operator in torch.compile: one graph and one compilation for all box counts; and opcheck."""

import pytest
import torch
from ops_cases import STRIDES, boxes_of, leaf, pyramid
from torch._dynamo.testing import CompileCounter

from gkd_fast import ops


def box_mean_pool(count):
    boxes, index = boxes_of(count)
    return lambda f, b, i: ops.box_mean_pool(f, b, i, STRIDES), ([leaf(f) for f in pyramid()], boxes, index)


def multiscale_roi_align(count):
    boxes, index = boxes_of(count)
    return (
        lambda f, b, i: ops.multiscale_roi_align(f, b, i, STRIDES, output_size=3),
        ([leaf(f) for f in pyramid()], boxes, index),
    )


def prototype_projection(count):
    return ops.prototype_projection, (leaf(torch.randn(2, count, 5)), torch.randn(2, 7, 5))


def pairwise_discrepancy(count):
    embeddings = leaf(torch.randn(2, count, 5)), torch.randn(2, count, 6)
    labels, offsets = torch.randint(0, 3, (count,)), torch.tensor([0, 2, 4, 7])
    prototypes = torch.randn(2, 7, 5), torch.randn(2, 7, 6)
    return lambda *a: ops.pairwise_discrepancy(*a)[0], (*embeddings, *prototypes, labels, offsets)


def masked_imitation(count):
    boxes, index = boxes_of(count)
    return (
        lambda s, t, b, i, w: torch.stack(ops.masked_imitation(s, t, b, i, w, STRIDES)[:2]),
        ([leaf(f) for f in pyramid()], pyramid(seed=5), boxes, index, torch.rand(3, count)),
    )


def matching_pursuit(count):
    a = torch.nn.functional.normalize(torch.randn(2, count, 5), dim=2)
    return ops.matching_pursuit, (a, a.flip(2), torch.tensor([count, 3]))


CASES = (
    box_mean_pool,
    multiscale_roi_align,
    prototype_projection,
    pairwise_discrepancy,
    masked_imitation,
    matching_pursuit,
)
COUNTS = (11, 17, 23)  # equal to no other size: the compiler takes equal sizes for one symbol


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_one_graph_for_all_box_counts(name, case):
    torch._dynamo.reset()
    function, _ = case(COUNTS[0])
    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    with ops.use_backend(name):
        for count in COUNTS:
            _, arguments = case(count)
            want = function(*arguments)
            got = compiled(*arguments)
            torch.testing.assert_close(got, want)
            if want.requires_grad:
                leaves = [t for t in torch.utils._pytree.tree_leaves(arguments) if t.requires_grad]
                for a, b in zip(
                    torch.autograd.grad(got.sum(), leaves),
                    torch.autograd.grad(want.sum(), leaves),
                    strict=True,
                ):
                    torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", CASES)
def test_inductor_forward_and_backward(case):
    torch._dynamo.reset()
    function, arguments = case(COUNTS[0])
    leaves = [t for t in torch.utils._pytree.tree_leaves(arguments) if t.requires_grad]
    with ops.use_backend("cpu"):
        compiled = torch.compile(function, fullgraph=True, dynamic=True)(*arguments)
        eager = function(*arguments)
        torch.testing.assert_close(compiled, eager)
        gradients = [torch.autograd.grad(out.sum(), leaves) if leaves else () for out in (compiled, eager)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_switching_the_backend_recompiles():
    torch._dynamo.reset()
    x, p = torch.randn(1, 4, 3), torch.randn(1, 5, 3)
    compiled = torch.compile(ops.prototype_projection, fullgraph=True, backend="eager")
    with ops.use_backend("cpu"):
        kernel = compiled(x, p)
    with ops.use_backend("reference"):
        torch.testing.assert_close(compiled(x, p), kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("need", [(True, False), (True, True), (False, False)])
def test_opcheck(dtype, need):
    x, p = torch.randn(2, 5, 4).to(dtype), torch.randn(2, 7, 4).to(dtype)
    raw = torch.ops.gkd_fast
    torch.library.opcheck(raw.prototype_projection.default, (x, p))
    gradient = torch.randn(2, 5, 7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    torch.library.opcheck(raw.prototype_projection_backward.default, (gradient, x, p, *need))
    labels, offsets = torch.tensor([0, 1, -1, 2, 0]), torch.tensor([0, 2, 4, 7])
    torch.library.opcheck(raw.pairwise_discrepancy.default, (x, x.flip(2), p, p.flip(2), labels, offsets, *need))
