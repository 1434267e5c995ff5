"""The CUDA operators on anchors, run on the CPU: calls with tensors as those of gkd_fast.ops."""

import struct

import torch
from emulated import ELEMENTS, HERE, build, execute, span, storage_bytes

PROGRAM = HERE / "emulation" / "detection.cpp"


class Given:
    """Arguments in the order in which the program reads them."""

    def __init__(self):
        self.bytes = bytearray()

    def integers(self, *values):
        self.bytes += struct.pack(f"<{len(values)}q", *map(int, values))

    def numbers(self, *values):
        self.bytes += struct.pack(f"<{len(values)}d", *values)

    def arrays(self, *tensors):
        for tensor in tensors:
            self.bytes += storage_bytes(tensor.contiguous())


def run(operator, given, order, sanitizer, *results):
    """Tensors of these dtypes and shapes from what the program wrote."""
    written = execute(build(PROGRAM, sanitizer), operator, str(order), given=bytes(given.bytes))
    found, first = [], 0
    for dtype, shape in results:
        size = torch.Size(shape).numel() * dtype.itemsize
        part = bytearray(written[first : first + size])
        found.append(torch.frombuffer(part, dtype=dtype).view(shape) if size else torch.empty(shape, dtype=dtype))
        first += size
    assert first == len(written)
    return found


def match_anchors(
    anchors,
    boxes,
    counts,
    *,
    high_threshold,
    low_threshold,
    allow_low_quality_matches=False,
    order=0,
    sanitizer="plain",
):
    given, shape = Given(), (len(boxes), anchors.shape[-2])
    given.integers(*shape, boxes.shape[1], anchors.dim() == 2, allow_low_quality_matches)
    given.numbers(high_threshold, low_threshold)
    given.arrays(anchors, boxes, counts)
    return run("match_anchors", given, order, sanitizer, (torch.int64, shape))[0]


def encode_boxes(anchors, boxes, matched, *, weights=(1.0, 1.0, 1.0, 1.0), order=0, sanitizer="plain"):
    given = Given()
    given.integers(*matched.shape, boxes.shape[1], anchors.dim() == 2)
    given.numbers(*weights)
    given.arrays(anchors, boxes, matched)
    return run("encode_boxes", given, order, sanitizer, (torch.float32, (*matched.shape, 4)))[0]


def sample_balanced(matched, seeds, samples, *, positive_fraction, order=0, sanitizer="plain"):
    given = Given()
    given.integers(*matched.shape, samples, int(samples * positive_fraction))
    given.arrays(matched, seeds)
    results = (torch.int64, (len(matched), samples)), (torch.int64, matched.shape)
    return tuple(run("sample_balanced", given, order, sanitizer, *results))


def batched_nms(boxes, scores, groups, iou_threshold, *, most, order=0, sanitizer="plain"):
    from gkd_fast.ops.batched_nms import least_above

    given = Given()
    given.integers(*groups.shape, most)
    given.numbers(least_above(iou_threshold))
    given.arrays(boxes, groups, scores.sort(dim=1, descending=True, stable=True).indices)
    results = (torch.int64, (len(groups), most)), (torch.int64, (len(groups),))
    return tuple(run("batched_nms", given, order, sanitizer, *results))


def _loss(operator, maps, values, matched, weight, complete, needed, order, sanitizer):
    """The loss, and the gradients for a gradient of 1 of it."""
    given = Given()
    given.integers(ELEMENTS[maps[0].dtype], len(maps), len(maps[0]), values, needed)
    last = [m.is_contiguous(memory_format=torch.channels_last) and not m.is_contiguous() for m in maps]
    for level, interleaved in zip(maps, last, strict=True):
        given.integers(*level.shape[1:], *level.stride(), interleaved, span(level))
        given.bytes += storage_bytes(level)
    given.arrays(matched, weight)
    complete(given)
    dtype = torch.float32 if maps[0].dtype == torch.float16 else maps[0].dtype
    shapes = [m.permute(0, 2, 3, 1).shape if i else m.shape for m, i in zip(maps, last, strict=True)]
    results = [(dtype, shape) for shape in shapes] if needed else []
    loss, *gradients = run(operator, given, order, sanitizer, (torch.float32, ()), *results)
    return loss, [g.permute(0, 3, 1, 2) if i else g for g, i in zip(gradients, last, strict=False)]


def sigmoid_focal_loss(
    logits, matched, labels, weight, *, classes, alpha=0.25, gamma=2.0, needed=True, order=0, sanitizer="plain"
):
    def complete(given):
        given.integers(labels.shape[1])
        given.numbers(alpha, gamma)
        given.arrays(labels)

    return _loss("sigmoid_focal_loss", logits, classes, matched, weight, complete, needed, order, sanitizer)


def smooth_l1_loss(offsets, matched, targets, weight, *, beta=0.0, needed=True, order=0, sanitizer="plain"):
    def complete(given):
        given.numbers(beta)
        given.arrays(targets)

    return _loss("smooth_l1_loss", offsets, 4, matched, weight, complete, needed, order, sanitizer)
