"""The CUDA kernels' own source, run on the CPU: builds of the harness, and calls of its operators with tensors."""

import functools
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ("-std=c++17", "-g1", "-DGKD_EMULATED", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas")
SANITIZERS = {
    "plain": ("-O2", "-Wall"),
    "address": ("-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-fsanitize=thread"),
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=0",
    "TSAN_OPTIONS": "exitcode=66:report_signal_unsafe=0:halt_on_error=1:history_size=0",
}
ORDERS = range(7)  # four fixed ones, three seeds
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class EmulationError(RuntimeError):
    """A run that ended with an error of the emulation, or with a sanitizer's report."""


@functools.cache
def include_folders() -> tuple[Path, ...]:
    """Folders of CUDA's headers: of the toolkit, of the packages that torch needs, of Triton."""
    nvcc = shutil.which("nvcc")
    found = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    found.append(Path("/usr/local/cuda/include"))
    for name, pattern in (("nvidia", "*/include"), ("triton", "backends/nvidia/include")):
        spec = importlib.util.find_spec(name)
        for root in spec.submodule_search_locations if spec else ():
            found += Path(root).glob(pattern)
    return tuple(path for path in found if (path / "cuda_fp16.h").is_file())


def need_emulation() -> None:
    """Skip a test where kernels cannot be emulated."""
    if platform.machine() != "x86_64" or shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER} on x86-64")
    if not include_folders():
        pytest.skip("needs CUDA's headers cuda_fp16.h and cuda_bf16.h")


@functools.cache
def _build_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="gkd_emulated_")


@functools.cache
def build(source: Path, sanitizer: str = "plain") -> Path:
    """Compile a source file for the CPU, once in a process of pytest; skips the test where its sanitizer is missing."""
    need_emulation()
    program = Path(_build_folder().name) / f"{source.stem}_{sanitizer}"
    folders = [f"-I{HERE / 'emulation'}", *(f"-isystem{folder}" for folder in include_folders())]
    command = [COMPILER, *FLAGS, *SANITIZERS[sanitizer], *folders, "-x", "c++", str(source), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in result.stderr or "libtsan" in result.stderr:
        pytest.skip(f"needs the {sanitizer} sanitizer of {COMPILER}")
    assert result.returncode == 0, result.stderr[:4000]
    return program


@functools.cache
def _fixed_addresses() -> tuple[str, ...]:
    """A command before others: ThreadSanitizer wants its memory where random addresses may already lie."""
    command = ("setarch", "-R")
    works = shutil.which(command[0]) and subprocess.run([*command, "true"], check=False).returncode == 0
    return command if works else ()


def execute(program: Path, *arguments: str, given: bytes = b"") -> bytes:
    """Run a program built here; returns what it wrote, raises EmulationError with its report."""
    command = [str(program), *arguments]
    if program.stem.endswith("_thread"):
        command = [*_fixed_addresses(), *command]
    result = subprocess.run(
        command, input=given, capture_output=True, env={**os.environ, **ENVIRONMENT}, timeout=200, check=False
    )
    if result.returncode:
        raise EmulationError(result.stderr.decode(errors="replace") or f"status {result.returncode}")
    return result.stdout


class Call:
    """Arguments of an operator in the order in which the harness reads them."""

    def __init__(self, operator, features, boxes, image_index, *, filled):
        self.operator, self.features = operator, features
        self.given = bytearray()
        images, channels = features[0].shape[:2]
        self.integers(ELEMENTS[features[0].dtype], len(features), images, channels)
        for feature in features:
            self.integers(*feature.shape[2:], *feature.stride(), span(feature))
            if filled:
                self.given += storage_bytes(feature)
        self.integers(len(boxes))
        self.array(boxes)
        self.array(image_index)

    def integers(self, *values):
        self.given += struct.pack(f"<{len(values)}q", *map(int, values))

    def numbers(self, *values):
        self.given += struct.pack(f"<{len(values)}d", *values)

    def array(self, tensor):
        self.given += storage_bytes(tensor.contiguous())

    def run(self, order, sanitizer):
        """What the harness wrote."""
        program = build(HERE / "emulation" / "harness.cpp", sanitizer)
        return execute(program, self.operator, str(order), given=bytes(self.given))

    def gradients(self, order, sanitizer):
        """Maps like the features, from what the harness wrote."""
        written, maps = memoryview(self.run(order, sanitizer)), []
        for feature in self.features:
            part, written = written[: span(feature)], written[span(feature) :]
            flat = torch.frombuffer(bytearray(part), dtype=feature.dtype) if part else feature.new_empty(0)
            maps.append(flat.as_strided(feature.shape, feature.stride()))
        return maps


def span(tensor):
    """Bytes from a tensor's first element to its last one."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def storage_bytes(tensor):
    """The memory that a tensor spans."""
    elements = span(tensor) // tensor.element_size()
    return tensor.as_strided((elements,), (1,)).view(torch.uint8).numpy().tobytes()


def box_mean_pool(features, boxes, image_index, strides, *, negative="clamp", order=0, sanitizer="plain"):
    """Embeddings [L,B,C], float32."""
    call = Call("box_mean_pool", features, boxes, image_index, filled=True)
    call.numbers(*map(float, strides))
    call.integers(negative == "mirror")
    shape = len(features), len(boxes), features[0].shape[1]
    return _tensor(call.run(order, sanitizer), torch.float32, shape)


def box_mean_pool_backward(
    gradient, features, boxes, image_index, strides, *, negative="clamp", order=0, sanitizer="plain"
):
    """Gradients of the features."""
    call = Call("box_mean_pool_backward", features, boxes, image_index, filled=False)
    call.numbers(*map(float, strides))
    call.integers(negative == "mirror")
    call.array(gradient)
    return call.gradients(order, sanitizer)


def _sampling(call, output_size, strides, sampling_ratio, aligned, canonical_size, canonical_level):
    call.integers(*output_size)
    call.numbers(*map(float, strides))
    call.integers(sampling_ratio, aligned, canonical_size, canonical_level)


def multiscale_roi_align(
    features,
    boxes,
    image_index,
    strides,
    *,
    output_size,
    sampling_ratio=2,
    aligned=False,
    canonical_size=224,
    canonical_level=4,
    order=0,
    sanitizer="plain",
):
    """Pooled features [B,C,R_h,R_w] in the features' dtype."""
    call = Call("multiscale_roi_align", features, boxes, image_index, filled=True)
    _sampling(call, output_size, strides, sampling_ratio, aligned, canonical_size, canonical_level)
    shape = len(boxes), features[0].shape[1], *output_size
    return _tensor(call.run(order, sanitizer), features[0].dtype, shape)


def multiscale_roi_align_backward(
    gradient,
    features,
    boxes,
    image_index,
    strides,
    *,
    sampling_ratio=2,
    aligned=False,
    canonical_size=224,
    canonical_level=4,
    order=0,
    sanitizer="plain",
):
    """Gradients of the features."""
    call = Call("multiscale_roi_align_backward", features, boxes, image_index, filled=False)
    _sampling(call, gradient.shape[2:], strides, sampling_ratio, aligned, canonical_size, canonical_level)
    call.array(gradient)
    return call.gradients(order, sanitizer)


def _tensor(written, dtype, shape):
    return torch.frombuffer(bytearray(written), dtype=dtype).view(shape) if written else torch.empty(shape, dtype=dtype)
