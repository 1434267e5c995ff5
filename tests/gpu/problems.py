"""One small problem of odd sizes for every operator, to be placed on any device, in any dtype and layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gkd_fast import ops

STRIDES = (4, 8, 16)
SIZES = ((45, 67), (23, 34), (12, 17))  # of the levels' maps
IMAGES, CHANNELS, BOXES, PROTOTYPES, CLASSES = 3, 72, 63, 70, 7
NAN = float("nan")
ODD_BOXES = [
    [0.0, 0.0, 268.0, 180.0],  # the whole image
    [10.0, 10.0, 10.0, 10.0],  # a point
    [900.0, 900.0, 990.0, 990.0],  # outside
    [-50.0, -40.0, -30.0, -20.0],  # outside, above and left
    [40.0, 30.0, 20.0, 10.0],  # inverted
    [-9.0, 5.0, 9.0, 30.0],  # over a border
]


@dataclass(frozen=True)
class Problem:
    """Inputs of one operator.

    Attributes:
        leaves: differentiated, in the problem's dtype; none where the operator has no gradient.
        fixed: in the problem's dtype as well.
        exact: boxes, indices and weights, whose dtype stays.
        function: outputs of (leaves, fixed, exact).
    """

    leaves: list[Tensor]
    fixed: list[Tensor]
    exact: list[Tensor]
    function: Callable[[list[Tensor], list[Tensor], list[Tensor]], Sequence[Tensor]]

    def place(self, device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> "Problem":
        """The same numbers there, rounded to the dtype; new leaves."""

        def put(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().to(device, dtype)
            last = channels_last and tensor.ndim == 4
            return tensor.clone(memory_format=torch.channels_last if last else torch.contiguous_format)

        return replace(
            self,
            leaves=[put(t).requires_grad_() for t in self.leaves],
            fixed=[put(t) for t in self.fixed],
            exact=[t.to(device) for t in self.exact],
        )

    def outputs(self) -> tuple[Tensor, ...]:
        result = self.function(self.leaves, self.fixed, self.exact)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs, and the gradients of the leaves for fixed upstream gradients."""
        outputs = self.outputs()
        chosen = [o for o in outputs if o.requires_grad]
        if not chosen:
            return [o.detach() for o in outputs], []
        return [o.detach() for o in outputs], list(torch.autograd.grad(chosen, self.leaves, self.upstream(chosen)))

    @staticmethod
    def upstream(outputs: Sequence[Tensor]) -> list[Tensor]:
        """A gradient in [0.5, 1.5] for each output, the same on every device; made without a copy from the host."""
        return [
            (torch.arange(o.numel(), device=o.device, dtype=torch.float64) * 0.7).sin().mul(0.5).add(1.0).to(o.dtype)
            .view(o.shape)
            for o in outputs
        ]  # fmt: skip


def _boxes(count: int, generator: torch.Generator, *, odd: bool = True) -> list[Tensor]:
    extent = torch.tensor([268.0, 180.0])
    corner = (torch.rand(count, 2, generator=generator) * 1.1 - 0.1) * extent
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) ** 2 * extent], dim=1)
    if odd:
        boxes[: len(ODD_BOXES)] = torch.tensor(ODD_BOXES)[:count]
    return [boxes, torch.randint(IMAGES, (count,), generator=generator)]


def _maps(generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(IMAGES, CHANNELS, *size, generator=generator, dtype=torch.float64) for size in SIZES]


def box_mean_pool(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(0)
    boxes, images = _boxes(count, g)
    return Problem(_maps(g), [], [boxes, images], lambda m, _, e: ops.box_mean_pool(m, *e, STRIDES))


def multiscale_roi_align(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(1)
    return Problem(
        _maps(g),
        [],
        _boxes(count, g, odd=False),
        lambda m, _, e: ops.multiscale_roi_align(m, *e, STRIDES, output_size=7),
    )


def prototype_projection(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(2)
    leaves = [torch.randn(3, n, CHANNELS, generator=g, dtype=torch.float64) for n in (count, PROTOTYPES)]
    return Problem(leaves, [], [], lambda v, *_: ops.prototype_projection(*v))


def pairwise_discrepancy(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(3)
    spaces = [torch.randn(3, n, CHANNELS, generator=g, dtype=torch.float64) for n in (count, count, PROTOTYPES)]
    prototypes = torch.randn(3, PROTOTYPES, CHANNELS + 8, generator=g, dtype=torch.float64)
    teacher = torch.randn(3, count, CHANNELS + 8, generator=g, dtype=torch.float64)
    labels = torch.randint(-1, CLASSES, (count,), generator=g)
    offsets = torch.tensor([0, 9, 9, 20, 31, 50, 60, PROTOTYPES])  # the second class has no prototypes
    return Problem(
        spaces[:1],
        [teacher, spaces[2], prototypes],
        [labels, offsets],
        lambda s, f, e: ops.pairwise_discrepancy(*s, *f, *e),
    )


def masked_imitation(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(4)
    omega = torch.rand(len(SIZES), count, generator=g)
    return Problem(
        _maps(g), _maps(g), [*_boxes(count, g), omega], lambda s, t, e: ops.masked_imitation(s, t, *e, STRIDES)
    )


def _anchors() -> Tensor:
    """[A,4] on the cells of all levels, two a cell; many have equal IoUs with a box."""
    found = []
    for stride, (height, width) in zip(STRIDES, SIZES, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = torch.stack([x, y], 2).view(-1, 1, 2) * float(stride)
        half = stride * torch.tensor([[1.5, 1.5], [3.0, 2.0]])
        found.append(torch.cat([centre - half, centre + half], 2).view(-1, 4))
    return torch.cat(found)


def _truth(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes [N,count,4] of whole numbers, and how many of them each image has: all, half, none."""
    boxes = torch.stack([_boxes(count, generator)[0].round() for _ in range(IMAGES)])
    return boxes, torch.tensor([count, count // 2, 0])


def _matches(count: int, generator: torch.Generator) -> Tensor:
    """Matches [N,A] of all kinds."""
    return torch.randint(-2, max(count, 1), (IMAGES, len(_anchors())), generator=generator).clamp(max=count - 1)


def _predictions(values: int, generator: torch.Generator) -> list[Tensor]:
    """L maps [N,2*values,H_l,W_l]."""
    return [3 * torch.randn(IMAGES, 2 * values, *size, generator=generator, dtype=torch.float64) for size in SIZES]


def match_anchors(count: int = BOXES) -> Problem:
    options = {"high_threshold": 0.7, "low_threshold": 0.3, "allow_low_quality_matches": True}
    boxes, counts = _truth(count, torch.Generator().manual_seed(5))
    return Problem([], [], [_anchors(), boxes, counts], lambda _l, _f, e: ops.match_anchors(*e, **options))


def encode_boxes(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(6)
    boxes = torch.stack([_boxes(count, g, odd=False)[0] for _ in range(IMAGES)])
    weights = (10.0, 10.0, 5.0, 5.0)
    exact = [_anchors(), boxes, _matches(count, g)]
    return Problem([], [], exact, lambda _l, _f, e: ops.encode_boxes(*e, weights=weights))


def sample_balanced(count: int = BOXES) -> Problem:
    exact = [_matches(count, torch.Generator().manual_seed(7)), torch.tensor([0, 2**40 + 7, -5])]
    return Problem([], [], exact, lambda _l, _f, e: ops.sample_balanced(*e, 256, positive_fraction=0.25))


def batched_nms(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(8)
    boxes = torch.stack([_boxes(count, g)[0].round() for _ in range(IMAGES)])
    scores = (torch.rand(IMAGES, count, generator=g) * 20).round() / 20  # ties
    groups = torch.randint(-1, 3, (IMAGES, count), generator=g)
    return Problem([], [], [boxes, scores, groups], lambda _l, _f, e: ops.batched_nms(*e, 0.5, most=50))


def sigmoid_focal_loss(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(9)
    labels = torch.randint(CLASSES, (IMAGES, count), generator=g)
    exact = [_matches(count, g), labels, torch.tensor([0.3, 0.02, 1.0])]
    leaves = _predictions(CLASSES, g)
    return Problem(leaves, [], exact, lambda m, _, e: ops.sigmoid_focal_loss(m, *e, classes=CLASSES))


def smooth_l1_loss(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(10)
    leaves, matched = _predictions(4, g), _matches(count, g)
    exact = [matched, torch.randn(*matched.shape, 4, generator=g), torch.tensor([0.3, 0.02, 1.0])]
    return Problem(leaves, [], exact, lambda m, _, e: ops.smooth_l1_loss(m, *e, beta=1 / 9))


def background_trust(count: int = BOXES) -> Problem:
    """With as many prototypes; another number of channels in the teacher's space."""
    g = torch.Generator().manual_seed(5)
    student, teacher = _maps(g), [torch.cat([m, m[:, :8]], 1) for m in _maps(g)]
    prototypes = [torch.randn(len(SIZES), count, CHANNELS + more, generator=g) for more in (0, 8)]

    def trust(_: list[Tensor], maps: list[Tensor], prototypes: list[Tensor]) -> Tensor:
        spaces = maps[: len(SIZES)], maps[len(SIZES) :]
        return ops.background_trust(*spaces, *prototypes, *map(ops.channel_means, spaces))

    return Problem([], [*student, *teacher], prototypes, trust)


def soft_label_divergence(count: int = BOXES) -> Problem:
    g = torch.Generator().manual_seed(6)
    logits = [torch.randn(count, CLASSES, generator=g, dtype=torch.float64) for _ in range(2)]
    exact = [torch.rand(count, generator=g), torch.randint(-1, 3, (count,), generator=g)]
    return Problem(
        logits[:1], logits[1:], exact, lambda s, t, e: ops.soft_label_divergence(*s, *t, *e, temperature=2.0)
    )


def loss_terms(count: int = BOXES) -> Problem:
    """With as many levels."""
    g = torch.Generator().manual_seed(7)
    leaves = [torch.rand(shape, generator=g, dtype=torch.float64) for shape in ((count,), (2, count), ())]
    exact = [4 * torch.rand(2, count, generator=g), 0.5 + torch.rand(count, generator=g), torch.tensor(7.0)]

    def terms(sums: list[Tensor], _: list[Tensor], exact: list[Tensor]) -> Tensor:
        wide = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in sums]
        counts, variances, rows = exact
        options = {"weights": (5.0, 16.0, 8.0, 1.0), "least": 0.5, "variances": variances, "rows": rows}
        return torch.stack(ops.loss_terms(*wide, counts, **options))

    return Problem(leaves, [], exact, terms)


PROBLEMS = {
    function.__name__: function
    for function in (
        box_mean_pool,
        multiscale_roi_align,
        prototype_projection,
        pairwise_discrepancy,
        masked_imitation,
        match_anchors,
        encode_boxes,
        sample_balanced,
        batched_nms,
        sigmoid_focal_loss,
        smooth_l1_loss,
        background_trust,
        soft_label_divergence,
        loss_terms,
    )
}
