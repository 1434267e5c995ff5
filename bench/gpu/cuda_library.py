"""The CUDA C++ kernels as nvcc compiles them, for the report and its budgets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu.compiled import Compiled
from bench.gpu.cubin import read_facts
from gkd_fast.ops import _build, _build_cuda

FLAGS = (*_build_cuda.NVCC_FLAGS, "-std=c++17")


class CudaUnavailableError(RuntimeError):
    """There is no nvcc here."""


def nvcc_version() -> str:
    """What compiles: budgets are made for one version."""
    run = subprocess.run([_nvcc(), "--version"], capture_output=True, text=True, check=True)
    return "nvcc " + re.search(r"release (\S+),", run.stdout)[1]


def compile_cuda(architectures: Sequence[int]) -> list[Compiled]:
    """All kernels of csrc/cuda for all architectures.

    Raises:
        CudaUnavailableError: without nvcc.
        RuntimeError: nvcc's own message, where it fails.
    """
    compiler, sources = _nvcc(), sorted((_build.source_root() / "cuda").glob("*.cu"))
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compile_source(source: Path) -> list[Compiled]:
            target = Path(folder) / f"{source.stem}.o"
            command = [compiler, *FLAGS, *codes, "-c", str(source), "-o", str(target)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise RuntimeError(f"{' '.join(command)}: {run.stderr.strip()}")
            return [Compiled(facts.kernel, source.name, facts.shared, facts) for facts in read_facts(target)]

        return [kernel for kernels in pool.map(compile_source, sources) for kernel in kernels]


def _nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        raise CudaUnavailableError("nvcc not found on the PATH")
    return found
