"""Builds the mock device, once for every torch, and says how a process is started on it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from gkd_fast.ops import _build

HERE = Path(__file__).parent
HEADERS = ("cuda.h", "cuda_runtime_api.h", "cublas_api.h", "cublasLt.h")
# Of names in the headers: those that the real runtime answers without a device.
LEFT_TO_THE_RUNTIME = re.compile(r"cudaGetSymbol|cudaGetExportTable")
PRODUCTS = re.compile(r"cublas\w*(gemm|gemv|Gemm|Matmul|dot|Dot)\w*$|cublasLtMatmul$")


class MockUnavailableError(RuntimeError):
    """There is no C compiler, or torch knows no CUDA."""


def environment(devices: int = 1) -> dict[str, str]:
    """Environment of a process that is to run on the mock, this one's included.

    Args:
        devices: how many the process sees.

    Raises:
        MockUnavailableError: it cannot be built here.
    """
    library = build()
    folder = str(library.parent)
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH")))),
        "MOCK_DEVICES": str(devices),
        "TRITON_LIBCUDA_PATH": folder,
        # What Triton and Inductor compile for this driver suits no other one.
        "TRITON_CACHE_DIR": str(library.parent / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(library.parent / "inductor"),
        "TORCH_CUDA_ARCH_LIST": "9.0",
        "OMP_NUM_THREADS": "1",
    }


def build() -> Path:
    """The mock as a shared library, compiled at first use and kept in the user's cache.

    Raises:
        MockUnavailableError: without a C compiler, or where torch is built without CUDA.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise MockUnavailableError("needs gcc on the PATH")
    if torch.version.cuda is None:
        raise MockUnavailableError(f"needs a torch built for CUDA, got {torch.__version__}")
    folders = _header_folders()
    sources = [HERE / "device.c", HERE / "crt" / "host_defines.h", Path(__file__)]
    text = b"".join(path.read_bytes() for path in sources) + f"{torch.__version__}{folders}".encode()
    folder = _build.cache_directory("mock-" + hashlib.sha256(text).hexdigest()[:16])
    library = folder / "libmock.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as private:
            os.replace(_compile(compiler, folders, Path(private)), library)
    driver = folder / "libcuda.so.1"  # the name by which Triton looks for the driver
    if not driver.is_symlink():
        driver.symlink_to(library.name)
    return library


def _header_folders() -> list[Path]:
    """Where CUDA's headers are: in torch's own packages, else in a toolkit."""
    packages = Path(torch.__file__).parents[1] / "nvidia"
    roots = [*sorted(packages.glob("*/include")), *(Path(home) / "include" for home in _toolkits())]
    found = {name: next((root for root in roots if (root / name).is_file()), None) for name in HEADERS}
    missing = [name for name, root in found.items() if root is None]
    if missing:
        raise MockUnavailableError(f"needs CUDA's headers {', '.join(missing)} in torch's packages or in CUDA_HOME")
    return list(dict.fromkeys(root for root in found.values() if root))


def _toolkits() -> list[str]:
    return [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]


def _compile(compiler: str, folders: list[Path], private: Path) -> Path:
    code = (HERE / "device.c").read_text()
    own = set(re.findall(r"^API .*?\b(cu\w+)\(", code, re.MULTILINE)) | set(re.findall(r'"(cuda\w+)"\)', code))
    rest = private / "rest.c"
    rest.write_text(_rest(folders, own))
    target = private / "libmock.so"
    includes = [f"-isystem{folder}" for folder in folders]
    command = [compiler, "-w", "-O1", "-shared", "-fPIC", *includes, "-idirafter", str(HERE)]
    command += [str(HERE / "device.c"), str(rest), "-o", str(target), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        telling = [line for line in done.stderr.splitlines() if "error" in line] or ["failed without a message"]
        raise MockUnavailableError(f"gcc: {telling[0]}")
    return target


def _rest(folders: list[Path], own: set[str]) -> str:
    """C code of every other function that the headers declare: it succeeds and does nothing."""
    names: set[str] = set()
    for header in HEADERS:
        text = next((folder / header).read_text() for folder in folders if (folder / header).is_file())
        names |= set(re.findall(r"\b(cu[A-Z]\w+|cuda[A-Z]\w+|cublas[A-Z]\w+)\s*\(", text))
        names |= set(re.findall(r"#define\s+cu\w+\s+(cu\w+_v\d+)\s*$", text, re.MULTILINE))
    wanted = sorted(name for name in names - own if not LEFT_TO_THE_RUNTIME.match(name))
    lines = ["void mock_product(void);"]
    for name in wanted:
        body = "mock_product(); return 0;" if PRODUCTS.match(name) else "return 0;"
        lines.append(f'__attribute__((visibility("default"))) int {name}() {{ {body} }}')
    return "\n".join(lines) + "\n"
