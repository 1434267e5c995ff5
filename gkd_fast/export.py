"""``python -m gkd_fast.export``: a trained detector for use without this package, compared to the original."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from gkd_fast.cli.command import parse, run_command
from gkd_fast.config import from_dict
from gkd_fast.data.images import read_image
from gkd_fast.data.scenes import Scenes
from gkd_fast.data.transforms import resized_size
from gkd_fast.detectors.fixed_size import FixedSizeDetector
from gkd_fast.detectors.recipe import torchvision_recipe
from gkd_fast.errors import InputError, RunError
from gkd_fast.files import replacing, write_json
from gkd_fast.runs.detector_file import DetectorCheckpoint, load_detector

_DESCRIPTION = """Write a trained detector as plain torchvision weights, as a torch.export program or as ONNX, and
compare its detections to the original's on a sample image; the command fails where they differ."""

# Largest differences between two builds of the same network in float32.
_PIXELS, _SCORE = 0.05, 1e-3

Found = tuple[Tensor, Tensor, Tensor]
"""boxes [n,4] x1 y1 x2 y2 in pixels, scores [n], labels int64 [n]."""
Detect = Callable[[Tensor], Found]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export of one checkpoint."""

    checkpoint: Path | None = None
    """Trained detector: model.pt of a run's teacher, student or distilled folder."""
    format: Literal["torchvision", "torch_export", "onnx"] = "torchvision"
    """torchvision: a state dict, and beside it a JSON that says how to build the detector; torch_export: a program
    of torch.export; onnx: an ONNX graph. The latter two take one resized image, float [3,H,W] in 0..1."""
    output: Path | None = None
    """File to write (.pth, .pt2, .onnx)."""
    size: tuple[int, int] | None = None
    """Height and width of the images that a program or graph takes, in pixels; none: as trained, 4 by 3."""
    image: Path | None = None
    """Image to compare by; none: a drawn scene."""


def main(arguments: Sequence[str]) -> None:
    """Parse, write, compare."""
    options = parse(ExportConfig, arguments, "gkd_fast.export", _DESCRIPTION, ExportConfig())
    if options.checkpoint is None or options.output is None:
        missing = "--checkpoint" if options.checkpoint is None else "--output"
        raise InputError(f"{missing}: expected a file, got nothing; --help shows all options")
    if options.size and min(options.size) < 32:
        raise InputError(f"--size: expected a height and a width of at least 32 pixels, got {options.size}")
    if not options.output.parent.is_dir():
        raise InputError(f"--output: expected a file in a folder that exists, got {options.output}")
    if options.format == "onnx" and not _installed("onnxscript"):
        raise InputError("--format: onnx needs the package onnxscript; pip install 'gkd_fast[export]'")
    checkpoint = load_detector(options.checkpoint)
    data = from_dict(checkpoint.config).data
    short_side, long_side = data.short_side, data.long_side
    size = options.size or (short_side, min(long_side, round(short_side * 4 / 3)))
    if options.format == "torchvision":  # which resizes by itself
        size = resized_size(size, short_side=short_side, long_side=long_side)
    sample = _sample(options.image, size)
    write = {"torchvision": _write_torchvision, "torch_export": _write_program, "onnx": _write_onnx}[options.format]
    exported = write(checkpoint, options.output, sample)
    print(f"{options.output}: {options.format}, classes {', '.join(checkpoint.classes)}")
    if exported is None:
        print("not compared: that needs the package onnxruntime; pip install 'gkd_fast[export]'")
        return
    expected = plain_detections(checkpoint.build().eval())(sample)
    if not len(expected[0]):
        raise InputError("--image: expected an image in which the detector finds something, to compare by")
    difference = differences(expected, exported(sample))
    if difference:
        raise RunError(f"{options.output}: differs from {options.checkpoint} on the sample image: {difference}")
    print(f"the same {len(expected[0])} detections as {options.checkpoint} at {size[0]} x {size[1]} pixels")


def differences(expected: Found, got: Found) -> str:
    """Which detection lacks an equal one in the other set; empty if none does. The order does not count."""
    for mine, other, verb in ((expected, got, "lacks"), (got, expected, "adds")):
        boxes, scores, labels = other
        for box, score, label in zip(*mine, strict=True):
            near = (boxes - box).abs().amax(1) < _PIXELS if len(boxes) else torch.zeros(0, dtype=torch.bool)
            if not (near & ((scores - score).abs() < _SCORE) & (labels == label)).any():
                corners = ", ".join(f"{side:.1f}" for side in box.tolist())
                return f"{verb} label {int(label)} at [{corners}] of score {float(score):.4f}"
    return ""


def plain_detections(model: torch.nn.Module) -> Detect:
    """The detections of a torchvision detector in one image."""

    @torch.no_grad()
    def detect(image: Tensor) -> Found:
        (output,) = model([image])
        return output["boxes"], output["scores"], output["labels"]

    return detect


def _write_torchvision(checkpoint: DetectorCheckpoint, path: Path, sample: Tensor) -> Detect:
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


def _write_program(checkpoint: DetectorCheckpoint, path: Path, sample: Tensor) -> Detect:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torchvision's description of nms
        program = torch.export.export(_fixed(checkpoint, sample), (sample,), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
    loaded = torch.export.load(path).module()
    return lambda image: _taken(loaded(image))


def _write_onnx(checkpoint: DetectorCheckpoint, path: Path, sample: Tensor) -> Detect | None:
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
    graph.save(path)
    if not _installed("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: _taken([torch.from_numpy(part) for part in session.run(None, {"image": image.numpy()})])


def _fixed(checkpoint: DetectorCheckpoint, sample: Tensor) -> FixedSizeDetector:
    model = checkpoint.build().eval().requires_grad_(False)
    return FixedSizeDetector(model, tuple(sample.shape[-2:])).eval()


def _taken(outputs: Sequence[Tensor]) -> Found:
    boxes, scores, labels = (part.detach() for part in outputs)
    taken = scores > 0
    return boxes[taken], scores[taken], labels[taken]


def _sample(path: Path | None, size: tuple[int, int]) -> Tensor:
    """An image float32 [3,H,W] in 0..1."""
    drawn = tuple(max(64, side) for side in size)
    image = read_image(path) if path else Scenes(1, size=drawn)[0][0].as_subclass(Tensor)
    return resize(image, list(size), antialias=True).float().div(255)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    run_command(main)
