"""Training steps of both detectors on a pretended device: one device, no wait that is not known, the right dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretending import CUDA, Watch, pretending
from tiny_steps import make_config, make_step

from gkd_fast.methods.gkd import PUBLISHED
from gkd_fast.methods.registry import METHODS
from gkd_fast.ops import _dispatch

ALL = {
    "faster_rcnn": "+".join(name for name in METHODS if name != "crosskd"),
    "retinanet": "+".join(METHODS),
}
# Products that are in float32 by design: methods but gkd get float32 maps.
FLOAT32_OTHERS = {"backward"}
# DeFeat, as every method but gkd, is called without autocast, and runs the teacher's box head so.
FLOAT32_DEFEAT = {"detectors/faster_rcnn.py classify", "detectors/opened.py forward"}
# torch's own: the gradient scaler inverts its scale, one number, in double precision.
OF_TORCH = {("float64", "training/precision.py update")}


@pytest.fixture(autouse=True)
def _kernels_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of a GPU are taken to be there; a pretended tensor's operators compute on the CPU."""
    for name in ("cuda", "triton"):
        monkeypatch.setitem(_dispatch._LOADERS, name, str)
    assert not _dispatch.load_cpu()


def second_step(detector: str, precision: str, *, methods: str = "gkd", norm_steps: int = 0, **distill: Any) -> Watch:
    """What is found in the first and, of waits and dtypes, in the second of two steps."""
    run = {"amp": precision != "float32", "compile": "off", "device": "cuda", "grad_norm_steps": norm_steps}
    if run["amp"]:
        run["amp_dtype"] = precision
    config = make_config(detector, run=run, distill={"method": methods, **distill}, optim={"clip_norm": 10.0})
    with pretending() as watch:
        step, batches = make_step(config, device=CUDA)
        step(batches[0], 0.5)
        assert watch.of("mixed devices") == []
        watch.clear()
        terms = step(batches[1], 0.5)
        assert watch.operators > 1000
        for name, value in terms.items():
            assert value.is_cuda, name
            assert value.dtype == torch.float32, name
            assert value.on_cpu.isfinite(), name
        for parameter in step.trainable:
            assert parameter.is_cuda
            assert parameter.grad is None or parameter.grad.dtype == parameter.dtype
        watch.stop()
        step.state_dict()
    return watch


def assert_nothing_unknown(watch: Watch, methods: str = "gkd") -> None:
    assert watch.of("mixed devices") == []
    known = FLOAT32_OTHERS | (FLOAT32_DEFEAT if "defeat" in methods else set())
    products = {finding.place.split(", ")[0] for finding in watch.of("float32 product")}
    assert {place for place in products if not place.startswith("methods/") or "gkd/" in place} <= known
    unknown = [
        finding
        for finding in watch.findings
        if finding.kind != "float32 product" and (finding.kind, finding.place.split(", ")[0]) not in OF_TORCH
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("detector", "precision", "methods"),
    [
        ("faster_rcnn", "fp16", ALL["faster_rcnn"]),
        ("retinanet", "bf16", ALL["retinanet"]),
        ("faster_rcnn", "bf16", "recommended"),
        ("retinanet", "fp16", "recommended"),
    ],
    ids=lambda value: "all" if "+" in value else value,
)
def test_mixed_precision(detector: str, precision: str, methods: str) -> None:
    assert_nothing_unknown(second_step(detector, precision, methods=methods), methods)


@pytest.mark.parametrize("detector", ALL)
def test_float32_harvested_and_balanced(detector: str) -> None:
    watch = second_step(detector, "float32", norm_steps=1, prototypes_from="harvest", auto_balance=True)
    assert watch.of("float32 product")
    for finding in watch.of("float32 product"):
        del watch.findings[finding]
    assert_nothing_unknown(watch)


@pytest.mark.parametrize("detector", ALL)
def test_the_published_settings(detector: str) -> None:
    """The published one-stage soft labels choose rows by their number, for which the host waits; nothing else does."""
    watch = second_step(detector, "bf16", **PUBLISHED | {"relax_filters": True})
    for finding in watch.of("wait"):
        if finding.place.startswith("instances.py of_instances"):
            del watch.findings[finding]
    assert_nothing_unknown(watch)
