"""What an operator has to move and compute at least, and the time that no GPU of a kind can go below: an estimate.

Counted, not measured: every input cell that takes part read once a pass, every result written once; of the
operations the multiplications and additions of matrix products, and those on cells. Real kernels move more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.operators.cases import ROI_SIZE
from bench.operators.shapes import Shape, make_boxes, make_generator
from bench.operators.work import covered_bytes, map_bytes
from gkd_fast.ops.reference.multiscale_roi_align import assign_level


@dataclass(frozen=True)
class Ceiling:
    """Rates of one kind of GPU, a second: bytes from and to memory; operations by kind of arithmetic, dense."""

    name: str
    source: str
    memory: float
    float32: float
    half: float
    tf32: float


CEILINGS = {
    80: Ceiling("A100 SXM 80GB", "NVIDIA A100 Tensor Core GPU data sheet", 2.039e12, 19.5e12, 312e12, 156e12),
    90: Ceiling("H100 SXM", "NVIDIA H100 Tensor Core GPU data sheet", 3.35e12, 67e12, 989.5e12, 494.7e12),
    100: Ceiling("B200", "NVIDIA HGX B200 data sheet, an eighth", 8.0e12, 75e12, 2250e12, 1125e12),
}
SPLIT = 3  # TF32 products that one of float32 is split into


@dataclass(frozen=True)
class Cost:
    """One pass of one operator: bytes, operations, and whether tensor cores can do these."""

    op: str
    direction: str
    bytes: float
    operations: float
    products: bool

    def seconds(self, ceiling: Ceiling, dtype: torch.dtype) -> tuple[float, str]:
        """The least time, and what bounds it; a float32 product is three of TF32."""
        product = ceiling.half if dtype.itemsize == 2 else ceiling.tf32 / SPLIT
        rate = product if self.products else ceiling.float32
        times = {"memory": self.bytes / ceiling.memory, "arithmetic": self.operations / rate}
        bound = max(times, key=times.__getitem__)
        return times[bound], bound


def count(shape: Shape, dtype: torch.dtype) -> list[Cost]:
    """Costs of all operators on a shape, their inputs in `dtype`."""
    return [*_pooling(shape, dtype), *_products(shape, dtype), *_cells(shape, dtype), *_pursuit(shape)]


def _pooling(shape: Shape, dtype: torch.dtype) -> list[Cost]:
    size, maps = dtype.itemsize, map_bytes(shape, dtype)
    boxes, images = make_boxes(shape, shape.instances, make_generator())
    covered = covered_bytes(shape, dtype, boxes, images)
    embeddings = shape.levels * shape.instances * shape.channels * size
    rois, roi_images = make_boxes(shape, shape.rois, make_generator())
    level, _ = assign_level(rois, shape.strides, 224, 4)
    aligned = covered_bytes(shape, dtype, rois, roi_images, level)
    pooled = shape.rois * shape.channels * ROI_SIZE**2 * size
    samples = 8 * 4 * pooled / size  # 4 samples a bin, each of 4 cells: a multiplication and an addition
    return [
        Cost("box_mean_pool", "forward", covered + embeddings, covered / size, False),
        Cost("box_mean_pool", "backward", embeddings + maps, covered / size, False),
        Cost("multiscale_roi_align", "forward", aligned + pooled, samples, False),
        Cost("multiscale_roi_align", "backward", pooled + maps, samples, False),
    ]


def _products(shape: Shape, dtype: torch.dtype) -> list[Cost]:
    product = 2 * shape.levels * shape.instances * shape.prototypes * shape.channels
    vectors = shape.levels * (shape.instances + shape.prototypes) * shape.channels * dtype.itemsize
    embeddings = shape.levels * shape.instances * shape.channels * dtype.itemsize
    cosines = 4 * shape.levels * shape.instances * shape.prototypes
    return [
        Cost("prototype_projection", "forward", vectors + cosines, product, True),
        Cost("prototype_projection", "backward", cosines + 2 * vectors, 2 * product, True),
        # The slope of every pair is kept for the student's gradient.
        Cost("pairwise_discrepancy", "forward", 2 * vectors + cosines, 2 * product, True),
        Cost("pairwise_discrepancy", "backward", cosines + vectors + embeddings, product, True),
    ]


def _cells(shape: Shape, dtype: torch.dtype) -> list[Cost]:
    maps = map_bytes(shape, dtype)
    cells = maps / dtype.itemsize
    return [
        Cost("masked_imitation", "forward", 2 * maps, 3 * cells, False),
        Cost("masked_imitation", "backward", 3 * maps, 2 * cells, False),
        Cost("channel_means", "forward", maps, cells, False),
        # Both spaces' maps, once for the lengths and the products, which are the most of the operations.
        Cost("background_trust", "forward", 2 * maps, 2 * 2 * cells * shape.prototypes, True),
    ]


def _pursuit(shape: Shape) -> list[Cost]:
    """The Gram matrices of both spaces, in float32 whatever the inputs are; each pick passes over both once."""
    samples = 2 * shape.problems * shape.samples * shape.sample_channels * 4
    gram = 2 * shape.problems * shape.samples**2
    moved = samples + 4 * gram * (1 + shape.picks)
    return [Cost("matching_pursuit", "forward", moved, 2 * gram * shape.sample_channels, False)]
