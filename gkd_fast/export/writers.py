"""The forms in which a detector leaves this package; each writer returns what was written, read and ready to detect."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from gkd_fast.config import from_dict
from gkd_fast.detectors.fixed_size import FixedSizeDetector
from gkd_fast.detectors.recipe import torchvision_recipe
from gkd_fast.errors import InputError
from gkd_fast.export.comparison import Detect, Found, plain_detections
from gkd_fast.export.formats import installed
from gkd_fast.files import replacing, write_json
from gkd_fast.runs.detector_file import DetectorCheckpoint


def write_torchvision(checkpoint: DetectorCheckpoint, path: Path, sample: Tensor) -> Detect:
    """A state dict, and beside it a JSON with the lines of Python that build the detector."""
    data = from_dict(checkpoint.config).data
    sides = {"min_size": data.short_side, "max_size": data.long_side}
    recipe = torchvision_recipe(checkpoint.spec, checkpoint.build(), **sides)
    names: dict[str, Any] = {}
    exec(recipe, names)
    detector = names["detector"]
    try:
        detector.load_state_dict(checkpoint.model, strict=True)
    except RuntimeError as error:
        raise InputError(f"{checkpoint.origin}: expected a network that torchvision builds; {error}") from error
    with replacing(path) as temporary:
        torch.save(checkpoint.model, temporary)
    labels = {str(label): name for label, name in enumerate(checkpoint.classes, start=1)}
    content = {"torchvision": torchvision.__version__, "labels": labels, **sides, "python": recipe.splitlines()}
    write_json(path.with_suffix(".json"), content)
    return plain_detections(detector.eval())


def write_program(checkpoint: DetectorCheckpoint, path: Path, sample: Tensor) -> Detect:
    """A program of torch.export for images of the sample's size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torchvision's description of nms
        program = torch.export.export(_fixed(checkpoint, sample), (sample,), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
    loaded = torch.export.load(path).module()
    return lambda image: _taken(loaded(image))


def write_onnx(checkpoint: DetectorCheckpoint, path: Path, sample: Tensor) -> Detect | None:
    """An ONNX graph for images of the sample's size; None where onnxruntime is not there to run it."""
    detector = _fixed(checkpoint, sample)
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = ["boxes", "scores", "labels"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = torch.onnx.export(
                detector, (sample,), input_names=["image"], output_names=names, dynamo=True, verbose=False
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(f"{checkpoint.origin}: expected operators that ONNX has; {error}") from error
    assert graph is not None
    graph.save(path)
    if not installed("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: _taken([torch.from_numpy(part) for part in session.run(None, {"image": image.numpy()})])


def _fixed(checkpoint: DetectorCheckpoint, sample: Tensor) -> FixedSizeDetector:
    model = checkpoint.build().eval().requires_grad_(False)
    return FixedSizeDetector(model, (sample.shape[-2], sample.shape[-1])).eval()


def _taken(outputs: Sequence[Tensor]) -> Found:
    boxes, scores, labels = (part.detach() for part in outputs)
    taken = scores > 0
    return boxes[taken], scores[taken], labels[taken]
