"""Compile and find the CUDA operators, for the devices that are present.

They are built at first use alone: whoever installs on a machine without a GPU does not wait for them, and a
machine with one needs the code of its own architecture, not of all.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from gkd_fast.ops import _build

CXX_FLAGS = ("-O2", "-fvisibility=hidden", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000")
NVCC_FLAGS = ("-O3",)


def load() -> None:
    """Load the CUDA operators, compiling them first if need be.

    Raises:
        Exception: whatever is wrong with the toolchain.
    """
    archs = architectures()
    library = library_path(fingerprint(archs))
    if library.is_file():
        torch.ops.load_library(library)
        return
    print(f"gkd_fast: compiling the CUDA operators into {library.parent} (once)", file=sys.stderr)
    compile_library(library.parent, archs)


def architectures() -> str:
    """Compute capabilities to build for: TORCH_CUDA_ARCH_LIST, or those of the devices present."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if named:
        return named
    present = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(present))


def fingerprint(archs: str) -> str:
    """Name of the library that these sources give for these architectures."""
    return _build.digest("cuda", *CXX_FLAGS, *NVCC_FLAGS, *_build.EXTRA_FLAGS, archs, str(torch.version.cuda))


def library_path(name: str) -> Path:
    """Where the library of this fingerprint is kept between processes."""
    return _build.cache_directory(name) / f"gkd_fast_cuda_{name}.so"


def compile_library(directory: Path, archs: str) -> Path:
    """Compile the CUDA operators for some architectures into `directory`, load the library and return its path.

    Raises:
        RuntimeError: there is no CUDA toolkit, or the compiler failed.
    """
    from torch.utils import cpp_extension

    home, version = toolkit()
    _require_same_major(version)
    # torch guesses the toolkit once, when it is imported, and wrongly where nvcc is a link to it or a script.
    cpp_extension.CUDA_HOME = str(home)
    before = os.environ.get("TORCH_CUDA_ARCH_LIST")
    os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    try:
        return _build.compile_folder(
            "cuda",
            f"gkd_fast_cuda_{fingerprint(archs)}",
            directory,
            extra_cflags=[*CXX_FLAGS, *_build.EXTRA_FLAGS],
            extra_cuda_cflags=list(NVCC_FLAGS),
        )
    finally:
        if before is None:
            del os.environ["TORCH_CUDA_ARCH_LIST"]
        else:
            os.environ["TORCH_CUDA_ARCH_LIST"] = before


def toolkit() -> tuple[Path, str]:
    """The CUDA toolkit, of CUDA_HOME or what the nvcc on the PATH belongs to by its own words, and its version.

    Raises:
        RuntimeError: neither is there.
    """
    home = os.environ.get("CUDA_HOME")
    nvcc = Path(home) / "bin" / "nvcc" if home else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).is_file():
        raise RuntimeError("nvcc not found: expected a CUDA toolkit in CUDA_HOME or on the PATH")
    said = _said(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    version = re.search(r"release (\d+\.\d+)", _said(nvcc, "--version"))
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1], version[1] if version else ""


def _said(nvcc: str | Path, *arguments: str) -> str:
    done = subprocess.run([str(nvcc), *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _require_same_major(version: str) -> None:
    """RuntimeError where the toolkit's major version is not that of torch's CUDA, with whose runtime it has to link."""
    own = str(torch.version.cuda)
    if version and version.split(".")[0] != own.split(".")[0]:
        raise RuntimeError(
            f"expected nvcc of CUDA {own.split('.')[0]}, which torch is built for ({own}), got {version}"
        )
