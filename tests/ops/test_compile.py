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


def match_anchors(count):
    boxes = boxes_of(2 * count)[0].view(2, count, 4)
    counts = torch.tensor([count, count // 2])

    def function(anchors, boxes, counts):
        matched = ops.match_anchors(anchors, boxes, counts, high_threshold=0.5, low_threshold=0.4)
        return torch.cat([ops.encode_boxes(anchors, boxes, matched), matched[:, :, None]], 2)

    return function, (boxes_of(40, seed=3)[0], boxes, counts)


def sample_balanced(count):
    matched = torch.arange(2 * count).view(2, count) % 4 - 2
    return lambda m, s: torch.cat(ops.sample_balanced(m, s, 9, positive_fraction=0.5), 1), (matched, torch.arange(2))


def batched_nms(count):
    boxes, groups = boxes_of(2 * count)
    return (
        lambda b, s, g: torch.cat([ops.batched_nms(b, s, g, 0.5, most=9)[0], g], 1),
        (boxes.view(2, count, 4), torch.rand(2, count), groups.view(2, count)),
    )


def anchor_losses(count):
    maps, offsets = ([leaf(f) for f in pyramid(channels=12, sizes=((count, 2), (3, 1)), seed=seed)] for seed in (0, 1))
    anchors, labels = 3 * (2 * count + 3), torch.tensor([[0, 3], [1, 1]])
    matched = torch.arange(2 * anchors).view(2, anchors) % 4 - 2

    def function(maps, offsets, matched, labels, targets, weight):
        focal = ops.sigmoid_focal_loss(maps, matched, labels, weight, classes=4)
        return torch.stack([focal, ops.smooth_l1_loss(offsets, matched, targets, weight)])

    return function, (maps, offsets, matched, labels, torch.randn(2, anchors, 4), torch.rand(2))


CASES = (
    box_mean_pool,
    multiscale_roi_align,
    prototype_projection,
    pairwise_discrepancy,
    masked_imitation,
    matching_pursuit,
    match_anchors,
    sample_balanced,
    batched_nms,
    anchor_losses,
)
COUNTS = (11, 17, 23)  # equal to no other size: the compiler takes equal sizes for one symbol


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_one_graph_for_all_box_counts(name, case):
    if (name, case) == ("reference", batched_nms):
        pytest.skip("the reference goes through the boxes one by one: a graph for each number")
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


@pytest.mark.parametrize("case", [*CASES[:6], anchor_losses])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_opcheck_of_the_operators_on_anchors(dtype, last):
    raw = torch.ops.gkd_fast
    anchors, boxes, counts = boxes_of(40, seed=3)[0], boxes_of(10)[0].view(2, 5, 4), torch.tensor([5, 2])
    matched = torch.arange(2 * 40).view(2, 40) % 4 - 2
    torch.library.opcheck(raw.match_anchors.default, (anchors, boxes, counts, 0.5, 0.4, True))
    torch.library.opcheck(raw.encode_boxes.default, (anchors, boxes, matched, [1.0, 1.0, 1.0, 1.0]))
    torch.library.opcheck(raw.sample_balanced.default, (matched, counts, 9, 4))
    order = torch.arange(5).expand(2, 5).contiguous()
    torch.library.opcheck(raw.batched_nms.default, (boxes, order, order, 0.5, 4))
    maps = pyramid(channels=20, sizes=((2, 3), (2, 1)), dtype=dtype, channels_last=last)
    labels, weight, formats = torch.tensor([[0, 1], [2, 1]]), torch.rand(2), [int(last)] * 2
    for needed in (True, False):
        focal = maps, matched, labels, weight, 4, 0.25, 2.0, formats, needed
        torch.library.opcheck(raw.sigmoid_focal_loss.default, focal)
        torch.library.opcheck(
            raw.smooth_l1_loss.default, (maps, matched, torch.randn(2, 40, 4), weight, 0.1, formats, needed)
        )
