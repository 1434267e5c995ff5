"""Hostile inputs to all operators, in every layout: nothing breaks, and the kernels agree with the references.

`sanitize.py` runs this file with instrumented kernels, where a stray access ends the process.
"""

import pytest
import torch
import torch.nn.functional as F
from ops_cases import LAYOUTS, ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, laid_out, pyramid

from gkd_fast import ops

INF = float("inf")
INFINITE = torch.tensor([[-INF, -INF, INF, INF], [0.0, 0.0, INF, 5.0], [INF, INF, INF, INF], [9.0, -INF, 3.0, 7.0]])
RANDOM = boxes_of(20, extent=(300.0, 300.0))
BOXES = {
    "odd": (torch.cat([ODD_BOXES, INFINITE, RANDOM[0]]), torch.cat([ODD_IMAGES, torch.arange(4) % 2, RANDOM[1]])),
    "none": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
}
MAPS = {
    "single cells": {"sizes": ((1, 1),) * 3, "channels": 1},
    "thin": {"sizes": ((63, 1), (1, 33), (5, 3)), "channels": 65},
    "odd": {"sizes": ((13, 17), (7, 9), (1, 1)), "channels": 3},
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
everywhere = pytest.mark.parametrize(
    ("maps", "boxes", "layout"), [(m, b, layout) for m in MAPS for b in BOXES for layout in LAYOUTS]
)


def maps_of(name, layout, dtype, seed=0):
    return [laid_out(f, layout) for f in pyramid(**MAPS[name], dtype=dtype, seed=seed)]


def assert_backends_agree(function, tensors):
    """The same outputs and gradients from the kernel and from the reference, to the precision of the dtype."""
    results = []
    for backend in ("cpu", "reference"):
        leaves = [t.detach().requires_grad_() for t in tensors]
        with ops.use_backend(backend):
            outputs = function(*leaves)
            gradients = torch.autograd.grad(sum(o.nansum() for o in outputs if o.requires_grad), leaves)
        results.append((*outputs, *gradients))
    tolerance = max(1e-9 if tensors[0].dtype == torch.float64 else 1e-4, 2 * torch.finfo(tensors[0].dtype).eps)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@everywhere
@pytest.mark.parametrize("negative", ["clamp", "mirror"])
def test_box_mean_pool(maps, boxes, layout, negative):
    b, index = BOXES[boxes]
    for dtype in DTYPES:
        assert_backends_agree(
            lambda *f: [ops.box_mean_pool(f, b, index, STRIDES, negative=negative)], maps_of(maps, layout, dtype)
        )


@everywhere
@pytest.mark.parametrize("aligned", [False, True])
def test_multiscale_roi_align(maps, boxes, layout, aligned):
    b, index = BOXES[boxes]
    b = torch.cat([b, torch.tensor([[-1e5, -20.0, 1e6, 30.0], [3.0, 3.0, 1e30, 9.0]])])
    index = torch.cat([index, torch.tensor([0, 1])])
    for dtype in DTYPES:
        for ratio in (2, 0):
            assert_backends_agree(
                lambda *f, ratio=ratio: [
                    ops.multiscale_roi_align(
                        f,
                        b,
                        index,
                        STRIDES,
                        output_size=(3, 2),
                        sampling_ratio=ratio,
                        aligned=aligned,
                        canonical_size=14,
                        canonical_level=3,
                    )
                ],
                maps_of(maps, layout, dtype),
            )


@everywhere
@pytest.mark.parametrize("overlap", ["max", "last"])
def test_masked_imitation(maps, boxes, layout, overlap):
    b, index = BOXES[boxes]
    omega = torch.rand(3, len(b), generator=torch.Generator().manual_seed(2)) * 1.4 - 0.4
    for dtype, teacher_layout in zip(DTYPES, (*LAYOUTS, layout), strict=True):
        teacher = maps_of(maps, teacher_layout, dtype, seed=5)
        assert_backends_agree(
            lambda *s, teacher=teacher: ops.masked_imitation(
                s, teacher, b, index, omega, STRIDES, overlap=overlap, base_size=12.0
            ),
            maps_of(maps, layout, dtype),
        )


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prototypes", [0, 1, 37])
def test_background_trust(maps, layout, prototypes):
    for dtype, teacher_layout in zip(DTYPES, (*LAYOUTS, layout), strict=True):
        spaces = maps_of(maps, layout, dtype), maps_of(maps, teacher_layout, dtype, seed=5)
        spaces[0][0][0], spaces[1][0][..., -1, :] = INF, torch.nan
        channels = MAPS[maps]["channels"]
        rows = [torch.randn(3, prototypes, channels, generator=torch.Generator().manual_seed(n)) for n in (2, 3)]
        for row in rows:
            row[:, ::3] = 0.0
        found = []
        for backend in ("cpu", "reference"):
            with ops.use_backend(backend):
                means = [ops.channel_means(space) for space in spaces]
                found += [(*means, ops.background_trust(*spaces, *rows, *means, filled=True))]
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


VECTORS = [(1, 1, 1, 1), (2, 63, 13, 33), (3, 0, 5, 7), (2, 5, 0, 7), (1, 1, 63, 65), (2, 7, 9, 0)]


def vectors(levels, rows, channels, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(levels, rows, channels, generator=generator).to(dtype)
    return laid_out(F.normalize(drawn, dim=2), layout)


@pytest.mark.parametrize("shape", VECTORS)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_cosines(shape, layout):
    levels, instances, prototypes, channels = shape
    labels = torch.arange(instances) % 5 - 1  # padding, three classes, and one that does not exist
    offsets = torch.tensor([0, prototypes // 2, prototypes // 2, prototypes])
    for dtype in DTYPES:
        x, y = (vectors(levels, instances, channels, dtype, layout, seed) for seed in (0, 1))
        p, q = (vectors(levels, prototypes, channels, dtype, layout, seed) for seed in (2, 3))
        assert_backends_agree(lambda x, p: [ops.prototype_projection(x, p)], [x, p])
        assert_backends_agree(lambda x, y, p=p, q=q: ops.pairwise_discrepancy(x, y, p, q, labels, offsets), [x, y])


@pytest.mark.parametrize("samples", [0, 1, 63])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_matching_pursuit(samples, repeat, layout):
    count = torch.tensor([samples, 0, (samples + 1) // 2])
    candidates = torch.ones(3, samples, dtype=torch.bool)
    candidates[0] = False
    a, b = (vectors(3, samples, 7, torch.float64, layout, seed) for seed in (0, 1))
    for allowed in (None, candidates):
        picks = []
        for backend in ("cpu", "reference"):
            with ops.use_backend(backend):
                picks.append(ops.matching_pursuit(a, b, count, picks=9, repeat=repeat, candidates=allowed))
        assert torch.equal(*picks)
