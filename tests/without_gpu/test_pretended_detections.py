"""Detection on a pretended device: its host waits as often for a batch of many images as for one of one image."""

from __future__ import annotations

from collections import Counter

import pytest
from pretending import CUDA, pretending
from tiny_steps import make_config

from gkd_fast.data import Scenes
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import adapt, build_detector, specs
from gkd_fast.evaluation.detect import detect
from gkd_fast.ops import _dispatch


@pytest.fixture(autouse=True)
def _kernels_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of a GPU are taken to be there; a pretended tensor's operators compute on the CPU."""
    for name in ("cuda", "triton"):
        monkeypatch.setitem(_dispatch._LOADERS, name, str)
    assert not _dispatch.load_cpu()


def waits_of_second_batch(detector: str, images: int) -> Counter[str]:
    data = PreparedDataset(Scenes(2 * images, size=(64, 96)), short_side=64, long_side=96, flip=0.0)
    _, spec = specs(make_config(detector).model)
    batches = 0

    def finished(_: int) -> None:
        nonlocal batches
        batches += 1
        if batches == 1:
            watch.clear()

    with pretending() as watch:
        model = build_detector(spec, 3).to(CUDA).eval()
        (model if detector == "retinanet" else model.roi_heads).score_thresh = 0.0
        found = detect(adapt(model).opened(), data, batch_size=images, workers=0, device=CUDA, progress=finished)
        waits = Counter(
            {f"{f.operator}, {f.place}": number for f, number in watch.findings.items() if f.kind == "wait"}
        )
    assert batches == 2
    assert all(len(own["scores"]) for own in found)
    return waits


# Of the regions' numbers, of how many classes of them have a score, of the detections' numbers; then three copies.
@pytest.mark.parametrize(("detector", "expected"), [("faster_rcnn", 6), ("retinanet", 4)])
def test_waits_do_not_grow_with_the_images(detector: str, expected: int) -> None:
    one, many = (waits_of_second_batch(detector, images) for images in (1, 3))
    assert one == many
    assert one.total() == expected, "\n".join(one)
