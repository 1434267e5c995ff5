"""Mistakes planted in the CUDA kernels on anchors: each is seen by the values, a schedule, or AddressSanitizer.

All are in one program, which makes the one that PLANTED names: a second compilation for each would take minutes.
"""

import shutil
import sys
from pathlib import Path

import emulated
import emulated_detection as cuda
import pytest
import torch

from gkd_fast import ops

sys.path.append(str(Path(__file__).parents[1] / "ops"))
from detection_cases import ODD, generator, grid_anchors, matches, predictions, random_boxes

THRESHOLDS = {"high_threshold": 0.5, "low_threshold": 0.3, "allow_low_quality_matches": True}
SCHEDULES, VALUES, ADDRESS = "schedules", "values", "address"
PRELUDE = """#include <cstdlib>
inline bool planted(int mistake) {
  static const int made = std::atoi(std::getenv("PLANTED"));
  return made == mistake;
}
"""


def same(name, *arguments, **options):
    """Whether the kernel's results are the reference's."""
    found = getattr(cuda, name)(*arguments, **options)
    wanted = getattr(ops, name)(*arguments, **{k: v for k, v in options.items() if k not in ("order", "sanitizer")})
    found, wanted = ((r,) if isinstance(r, torch.Tensor) else r for r in (found, wanted))
    return all(torch.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in zip(found, wanted, strict=True))


def matching(**options):
    boxes = torch.stack([random_boxes(9), random_boxes(9, seed=2)])
    boxes[1, 3] = torch.tensor([700.0, 700.0, 710.0, 720.0])  # no anchor meets it: all are its best
    grid = same(
        "match_anchors", grid_anchors(rows=13, columns=23), boxes, torch.tensor([9, 5]), **THRESHOLDS, **options
    )
    many = random_boxes(2, 40), random_boxes(2, 300, seed=2), torch.tensor([300, 260])
    two = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 110.0, 10.0]])
    low = torch.tensor([0.0, 0.0, 10.0, 40.0]).repeat(
        1, 300, 1
    )  # more boxes than threads, the last with its own anchor
    low[0, -1] = torch.tensor([100.0, 0.0, 110.0, 50.0])
    return (
        grid
        and same("match_anchors", *many, **THRESHOLDS, **options)
        and same("match_anchors", two, low, torch.tensor([300]), **THRESHOLDS, **options)
        and same("match_anchors", ODD, ODD[None], torch.tensor([len(ODD)]), **THRESHOLDS, **options)
    )


def encoding(**options):
    return same("encode_boxes", random_boxes(2, 300), random_boxes(2, 6, seed=2), matches(2, 300, 6), **options)


def sampling(**options):
    few = torch.full((1, 40), -1)
    few[0, 3] = 0
    return all(
        same("sample_balanced", *given, 64, positive_fraction=0.5, **options)
        for given in ((matches(3, 700, 3), torch.tensor([0, 2**33 + 7, -5])), (few, torch.tensor([9])))
    )


def suppression(**options):
    boxes, scores = random_boxes(2, 330), torch.rand(2, 330, generator=generator())
    groups = torch.randint(-1, 3, (2, 330), generator=generator(5))
    return same("batched_nms", boxes, scores, groups, 0.5, most=400, **options)


def _loss(name, maps, *arguments, kernel_options, **settings):
    leaves = [level.clone().requires_grad_() for level in maps]
    wanted = getattr(ops, name)(leaves, *arguments, **settings)
    loss, gradients = getattr(cuda, name)(maps, *arguments, **settings, **kernel_options)
    pairs = zip((loss, *gradients), (wanted.detach(), *torch.autograd.grad(wanted, leaves)), strict=True)
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in pairs)


def focal(**options):
    maps, anchors = predictions(5, anchors=(9, 3, 1), sizes=((6, 8), (3, 2), (1, 1)))
    maps = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    labels, weight = torch.tensor([[0, 4, 2, 5], [-1, 1, 3, 3]]), torch.tensor([0.3, 0.02])
    given = matches(2, anchors, 4), labels, weight
    return _loss("sigmoid_focal_loss", maps, *given, classes=5, kernel_options=options)


def smooth_l1(**options):
    maps, anchors = predictions(4)
    given = matches(2, anchors, 4), torch.randn(2, anchors, 4, generator=generator()), torch.tensor([0.3, 0.02])
    return _loss("smooth_l1_loss", maps, *given, beta=0.5, kernel_options=options)


# File, what is replaced (between backticks) where it is, by what (None: nothing), who sees it.
MISTAKES = [
    ("match_anchors.cu", "`iou > anchor.best_iou`", "iou >= anchor.best_iou", matching, VALUES),
    ("match_anchors.cu", "`anchor.best_iou < call.high`", "anchor.best_iou < call.low", matching, VALUES),
    ("match_anchors.cu", "== `top[first + i]`", "top[i]", matching, VALUES),
    ("match_anchors.cu", "`if (!(iou == iou)) iou = 0;`", None, matching, VALUES),
    ("match_anchors.cu", "count - first));\n    `__syncthreads();`", None, matching, SCHEDULES),
    ("match_anchors.cu", "`if (place >= call.of_image) return;`\n  const bool background", None, matching, ADDRESS),
    ("encode_boxes.cu", "`call.shared ? place : own`", "int64_t{place}", encoding, VALUES),
    ("sample_balanced.cu", "`matched[place] == -1`", "matched[place] < 0", sampling, VALUES),
    ("sample_balanced.cu", "`call.samples - positive.count`", "call.samples - call.positives", sampling, VALUES),
    ("sample_balanced.cu", "`position + rank.before`", "rank.before", sampling, VALUES),
    ("sample_balanced.cu", "^ `mix(high)`", "0u", sampling, VALUES),
    ("sample_balanced.cu", "own = `place < image.count`", "true", sampling, ADDRESS),
    ("block.cuh", "total += of_warp[w];\n  `__syncthreads();`\n  return total", None, sampling, SCHEDULES),
    ("batched_nms.cu", "`others[i].group == own.group`", "true", suppression, VALUES),
    ("batched_nms.cu", "`groups[order[rank]] < 0`", "false", suppression, VALUES),
    ("batched_nms.cu", "`alive &= ~own[i];`", None, suppression, VALUES),
    ("batched_nms.cu", "`__syncthreads();`\n    if (thread() == 0) {", None, suppression, SCHEDULES),
    ("batched_nms.cu", "kept[0] = chosen;\n    }\n    `__syncthreads();`", None, suppression, SCHEDULES),
    ("batched_nms.cu", "`if (rank >= call.places) return;`", None, suppression, ADDRESS),
    ("anchor_losses.cu", "`match < -1`", "false", focal, VALUES),
    ("anchor_losses.cu", "loss.alpha : `1.0f - loss.alpha`", "loss.alpha", focal, VALUES),
    ("anchor_losses.cu", "s = `u > 0 ? inverse : e * inverse`", "inverse", focal, VALUES),
    ("anchor_losses.cu", "map.interleaved ? `element % map.channels`", "element / map.cells", focal, VALUES),
    ("anchor_losses.cu", "`maps.weight[image]`", "maps.weight[0]", smooth_l1, VALUES),
    ("anchor_losses.cu", "difference < 0 ? `-1.0f` : difference", "1.0f", smooth_l1, VALUES),
    ("anchor_losses.cu", "`if (element >= elements) break;`", None, smooth_l1, ADDRESS),
]  # fmt: skip


def plant(folder, mistake):
    name, where, new, *_ = MISTAKES[mistake]
    before, old, after = where.split("`")
    text = (folder / name).read_text()
    assert text.count(before + old + after) == 1, f"{name} has no one {before + old + after!r}"
    number = mistake + 1
    changed = f"if (!planted({number})) {{ {old} }}" if new is None else f"(planted({number}) ? ({new}) : ({old}))"
    (folder / name).write_text(text.replace(before + old + after, before + changed + after))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The harness over sources with all mistakes."""
    root = tmp_path_factory.mktemp("planted")
    sources, harness = root / "csrc" / "cuda", root / "tests" / "cuda" / "emulation"
    shutil.copytree(emulated.HERE.parents[1] / "csrc" / "cuda", sources)
    shutil.copytree(emulated.HERE / "emulation", harness)
    for mistake in range(len(MISTAKES)):
        plant(sources, mistake)
    path = harness / "planted_detection.cpp"
    path.write_text(PRELUDE + (harness / "detection.cpp").read_text())
    return path


@pytest.fixture
def make(program, monkeypatch):
    """Makes one of the mistakes, or none."""
    monkeypatch.setattr(cuda, "PROGRAM", program)
    with ops.use_backend("reference"):
        yield lambda mistake: monkeypatch.setenv("PLANTED", str(mistake))


def agrees(problem, order):
    """Whether the results are right and no threads waited at different barriers."""
    try:
        return problem(order=order)
    except emulated.EmulationError:
        return False


@pytest.mark.parametrize("problem", [matching, encoding, sampling, suppression, focal, smooth_l1])
def test_sound_kernels_agree(problem, make):
    make(0)
    assert problem()
    assert problem(sanitizer="address")


@pytest.mark.parametrize("mistake", range(len(MISTAKES)), ids=[f"{m[0]}-{m[1][:40]!r}" for m in MISTAKES])
def test_a_mistake_is_seen(mistake, make):
    make(mistake + 1)
    problem, net = MISTAKES[mistake][3:]
    if net == VALUES:
        assert not problem()
    elif net == SCHEDULES:
        assert not all(agrees(problem, order) for order in emulated.ORDERS)
    else:
        with pytest.raises(emulated.EmulationError, match="buffer-overflow"):
            problem(sanitizer=ADDRESS)
