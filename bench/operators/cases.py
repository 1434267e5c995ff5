"""The measured operators: inputs, implementations, compulsory work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

from bench.measuring.agreement import disagreement, pick_disagreement
from bench.operators import published
from bench.operators.case import Case, Implementation, Setting, fused, implementations, on_backend
from bench.operators.detection import DETECTION
from bench.operators.shapes import Shape, make_boxes, make_generator, make_pyramid, make_samples
from bench.operators.work import computed, covered_bytes, map_bytes, moved, tensor_bytes
from gkd_fast import ops
from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import PrototypeBank, robust_distilling
from gkd_fast.methods.units import Units
from gkd_fast.ops.reference.multiscale_roi_align import assign_level

ROI_SIZE, ROI_SAMPLES = 7, 2  # cells a side and samples a cell and side, as in a Faster R-CNN's box head
COMPILED_PROBLEMS = 16  # a batch that the reference takes in one piece: more would unroll into one huge graph


def build_case(op: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """Inputs and implementations of one operator; op is a key of `CASES`."""
    return CASES[op](Setting(shape, dtype, device))


def _box_mean_pool(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    boxes, image_index = make_boxes(shape, shape.instances, generator)
    maps = [setting.leaf(level) for level in make_pyramid(shape, generator)]
    embeddings = shape.levels * shape.instances * shape.channels * setting.dtype.itemsize
    covered = covered_bytes(shape, setting.dtype, boxes, image_index)
    return Case(
        op="box_mean_pool",
        detail=f"{_pyramid_text(shape)}, {shape.instances} boxes",
        device=setting.device,
        leaves=maps,
        implementations=implementations(
            setting.device,
            ops.box_mean_pool,
            published.box_mean_pool,
            maps,
            boxes.to(setting.device),
            image_index.to(setting.device),
            shape.strides,
        ),
        work=moved(covered + 2 * embeddings + map_bytes(shape, setting.dtype)),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _multiscale_roi_align(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    boxes, image_index = make_boxes(shape, shape.rois, generator)
    maps = [setting.leaf(level) for level in make_pyramid(shape, generator)]
    names = [str(level) for level in range(shape.levels)]
    theirs = torchvision.ops.MultiScaleRoIAlign(names, ROI_SIZE, ROI_SAMPLES)
    lists = list(boxes.to(setting.device, setting.dtype).split(image_index.bincount().tolist()))
    image_sizes = [(shape.height, shape.width)] * shape.images
    level, _ = assign_level(boxes, shape.strides, 224, 4)
    pooled = shape.rois * shape.channels * ROI_SIZE**2 * setting.dtype.itemsize
    covered = covered_bytes(shape, setting.dtype, boxes, image_index, level)
    return Case(
        op="multiscale_roi_align",
        detail=f"{_pyramid_text(shape)}, {shape.rois} boxes, {ROI_SIZE}x{ROI_SIZE}, ratio {ROI_SAMPLES}",
        device=setting.device,
        leaves=maps,
        implementations=implementations(
            setting.device,
            ops.multiscale_roi_align,
            None,
            maps,
            boxes.to(setting.device),
            image_index.to(setting.device),
            shape.strides,
            output_size=ROI_SIZE,
            sampling_ratio=ROI_SAMPLES,
            torchvision_call=lambda: (theirs(dict(zip(names, maps, strict=True)), lists, image_sizes),),
        ),
        work=moved(covered + 2 * pooled + map_bytes(shape, setting.dtype)),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _prototype_projection(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    embeddings, prototypes = (
        setting.leaf(torch.randn(shape.levels, rows, shape.channels, generator=generator))
        for rows in (shape.instances, shape.prototypes)
    )
    product = 2 * shape.levels * shape.instances * shape.prototypes * shape.channels
    return Case(
        op="prototype_projection",
        detail=_product_text(shape),
        device=setting.device,
        leaves=[embeddings, prototypes],
        implementations=implementations(
            setting.device, ops.prototype_projection, published.prototype_projection, embeddings, prototypes
        ),
        work=computed(3 * product, setting.dtype),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _pairwise_discrepancy(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    bank = _make_bank(setting, generator)
    student, teacher = _make_embeddings(shape, bank, generator)
    labels = _make_labels(shape, generator)
    leaf = setting.leaf(student)
    product = 2 * shape.levels * shape.instances * shape.prototypes * shape.channels
    return Case(
        op="pairwise_discrepancy",
        detail=f"2 spaces, {_product_text(shape)}",
        device=setting.device,
        leaves=[leaf],
        implementations=implementations(
            setting.device,
            ops.pairwise_discrepancy,
            published.pairwise_discrepancy,
            leaf,
            setting.fixed(teacher),
            setting.fixed(bank.student),
            setting.fixed(bank.teacher),
            labels.to(setting.device),
            bank.class_offsets,
        ),
        work=computed(3 * product, setting.dtype),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _masked_imitation(setting: Setting) -> Case:
    shape, generator = setting.shape, make_generator()
    boxes, image_index = make_boxes(shape, shape.instances, generator)
    student = [setting.leaf(level) for level in make_pyramid(shape, generator)]
    teacher = [setting.fixed(level) for level in make_pyramid(shape, generator)]
    omega = 0.5 + 0.5 * torch.rand(shape.levels, shape.instances, generator=generator)
    return Case(
        op="masked_imitation",
        detail=f"{_pyramid_text(shape)}, {shape.instances} boxes",
        device=setting.device,
        leaves=student,
        implementations=implementations(
            setting.device,
            ops.masked_imitation,
            published.masked_imitation,
            student,
            teacher,
            boxes.to(setting.device),
            image_index.to(setting.device),
            omega.to(setting.device),
            shape.strides,
        ),
        # Forward reads both pyramids; backward reads them again and writes the student's gradient.
        work=moved(5 * map_bytes(shape, setting.dtype)),
        compare=partial(disagreement, dtype=setting.dtype),
    )


def _matching_pursuit(setting: Setting) -> Case:
    shape = setting.shape
    student, teacher = (setting.fixed(space) for space in make_samples(shape, make_generator()))
    count = torch.full((shape.problems,), shape.samples, device=setting.device)
    arguments = (student, teacher, count)
    alpha = 10.0
    options: dict[str, Any] = {"picks": shape.picks, "alpha": alpha}
    one_problem = [argument[:1] for argument in arguments]
    compiled = torch.compile(ops.matching_pursuit, fullgraph=True, dynamic=False)

    def in_batches(*problems: Tensor, **options: Any) -> Tensor:
        batches = zip(*(argument.split(COMPILED_PROBLEMS) for argument in problems), strict=True)
        return torch.cat([compiled(*batch, **options) for batch in batches])

    return Case(
        op="matching_pursuit",
        detail=f"{shape.problems} problems of {shape.samples}x{shape.sample_channels}, {shape.picks} picks",
        device=setting.device,
        leaves=[],
        implementations=[
            Implementation("reference", on_backend("reference", ops.matching_pursuit, *arguments, **options)),
            Implementation("fused", fused(setting.device, ops.matching_pursuit, *arguments, **options)),
            Implementation(
                "compiled",
                on_backend("reference", in_batches, *arguments, **options),
                note=f"in batches of {COMPILED_PROBLEMS} problems",
            ),
            Implementation(
                "published_loop",
                on_backend("reference", published.matching_pursuit, *one_problem, **options),
                once=True,
                scale=shape.problems,
                note=f"time extrapolated from 1 of {shape.problems} problems; memory of 1",
            ),
        ],
        # The Gram matrices of both spaces; the picks themselves only update them.
        work=computed(4 * shape.problems * shape.samples**2 * shape.sample_channels, torch.float32),
        compare=partial(pick_disagreement, student=student, teacher=teacher, alpha=alpha),
    )


def _distill_loss(setting: Setting) -> Case:
    """Where the published loop has its own rule, the published one: it can't compute the other."""
    return _loss_case(setting, Settings(box_levels="own", background_trust="none"))


def default_loss(setting: Setting) -> Case:
    """The whole loss with the defaults, which has no published loop to compete with: its times are no speed-up.

    The teacher's units are those of a trained step: given, as they are made beside its pass.
    """
    teacher = make_pyramid(setting.shape, make_generator())
    moments = [torch.var_mean(feature.float(), (0, 2, 3), correction=0) for feature in teacher]
    variances, means = (torch.stack(moment).to(setting.device) for moment in zip(*moments, strict=True))
    variances = variances.mean(1)
    case = _loss_case(setting, Settings(), units=Units(means, variances, variances.sqrt()))
    kept = [i for i in case.implementations if i.name != "published_loop"]
    return replace(case, op="default_loss", implementations=kept)


def _loss_case(setting: Setting, settings: Settings, units: Units | None = None) -> Case:
    shape, dtype, generator = setting.shape, setting.dtype, make_generator()
    boxes, image_index = make_boxes(shape, shape.instances, generator)
    instances = Instances(
        boxes.to(setting.device),
        image_index.to(setting.device),
        _make_labels(shape, generator).to(setting.device),
    )
    bank = _make_bank(setting, generator)
    student, adapted = ([setting.leaf(m) for m in make_pyramid(shape, generator)] for _ in range(2))
    teacher = [setting.fixed(m) for m in make_pyramid(shape, generator)]
    soft = _make_soft_pairs(setting, instances, bank, generator)
    covered = covered_bytes(shape, dtype, boxes, image_index)
    options = {"stage": "two_stage", "kappa": 1.0, "units": units}
    return Case(
        op="distill_loss",
        detail=f"{_pyramid_text(shape)}, {shape.instances} boxes, {shape.prototypes} prototypes",
        device=setting.device,
        leaves=[*student, *adapted, soft.student],
        implementations=implementations(
            setting.device,
            partial(_total_and_terms, robust_distilling),
            partial(_total_and_terms, published.robust_distilling),
            student,
            adapted,
            teacher,
            instances,
            soft,
            bank,
            settings,
            **options,
        ),
        # Pooling reads the covered cells of two pyramids and writes the student's gradient; imitation reads
        # two pyramids, again in the backward pass, and writes the gradient of the adapted maps.
        work=moved(2 * covered + 6 * map_bytes(shape, dtype) + tensor_bytes([bank.student, bank.teacher])),
        compare=partial(disagreement, dtype=dtype),
    )


def _total_and_terms(function: Any, *args: Any, **settings: Any) -> tuple[Tensor, ...]:
    """The loss to differentiate, then its terms and the robust weights, which are only compared."""
    terms, omega = function(*args, **settings)
    return torch.stack(list(terms.values())).sum(), *(term.detach() for term in terms.values()), omega.detach()


def _pyramid_text(shape: Shape) -> str:
    return f"{shape.images}x{shape.channels} channels, {shape.height}x{shape.width}, {shape.levels} levels"


def _product_text(shape: Shape) -> str:
    return f"{shape.levels}x{shape.instances}x{shape.channels} embeddings, {shape.prototypes} prototypes"


def _make_labels(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randint(shape.classes, (shape.instances,), generator=generator)


def _make_bank(setting: Setting, generator: torch.Generator) -> PrototypeBank:
    """Prototypes float32, as the bank keeps them; equally many of every class."""
    shape = setting.shape
    size = (shape.levels, shape.prototypes)
    student, teacher = (torch.randn(*size, shape.channels, generator=generator).to(setting.device) for _ in range(2))
    return PrototypeBank(
        student=student,
        teacher=teacher,
        class_offsets=torch.arange(0, shape.prototypes + 1, shape.prototypes_per_class, device=setting.device),
        most=shape.prototypes_per_class,
        image_ids=torch.zeros(size, dtype=torch.int64),
        boxes=torch.zeros(*size, 4),
        classes=tuple(f"class {k}" for k in range(shape.classes)),
        strides=shape.strides,
    )


def _make_embeddings(shape: Shape, bank: PrototypeBank, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Embeddings [L,B,C] of both spaces, near the same prototypes, so that the spaces agree roughly."""
    nearest = torch.randint(shape.prototypes, (shape.instances,), generator=generator)
    size = (shape.levels, shape.instances, shape.channels)
    student, teacher = (
        space.cpu()[:, nearest] + 0.7 * torch.randn(size, generator=generator) for space in (bank.student, bank.teacher)
    )
    return student, teacher


def _make_soft_pairs(
    setting: Setting, instances: Instances, bank: PrototypeBank, generator: torch.Generator
) -> SoftPairs:
    """Class logits (background last) and RoI embeddings of every instance."""
    shape = setting.shape
    level, _ = assign_level(instances.boxes.cpu(), shape.strides, 224, 4)
    student, teacher = _make_embeddings(shape, bank, generator)
    row = torch.arange(shape.instances)
    logits = [3.0 * torch.randn(shape.instances, shape.classes + 1, generator=generator) for _ in range(2)]
    return SoftPairs(
        student=setting.leaf(logits[0]),
        teacher=setting.fixed(logits[1]),
        instance=row.to(setting.device),
        level=level.to(setting.device),
        student_embedding=setting.fixed(student[level, row]),
        teacher_embedding=setting.fixed(teacher[level, row]),
    )


CASES = {
    "box_mean_pool": _box_mean_pool,
    "multiscale_roi_align": _multiscale_roi_align,
    "prototype_projection": _prototype_projection,
    "pairwise_discrepancy": _pairwise_discrepancy,
    "masked_imitation": _masked_imitation,
    "matching_pursuit": _matching_pursuit,
    "distill_loss": _distill_loss,
    **DETECTION,
}
