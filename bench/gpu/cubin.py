"""Facts of compiled GPU code, read from the machine code itself; no driver and no GPU are needed.

Triton's wheel brings NVIDIA's cuobjdump and nvdisasm, which read what Triton and nvcc write.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import triton

# From compute capability 9.0 on cuobjdump counts the 1024 bytes that the system keeps of each block's memory.
SYSTEM_SHARED, FIRST_WITH_SYSTEM_SHARED = 1024, 90
_ARCH = re.compile(r"^\s*code for sm_(\d+)|^arch = sm_(\d+)", re.MULTILINE)
_USAGE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_SECTION = re.compile(r"^\.nv\.info\.(\S+)$", re.MULTILINE)
_BOUNDS = re.compile(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s+EIFMT_SVAL\s+Value:\s+((?:0x[0-9a-f]+ ?)+)")
_CODE = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_TENSOR_CORE = re.compile(r"(?:H|I|D|Q|O|HG|IG|QG|BG|UTC[A-Z])MMA\b")


@dataclass(frozen=True)
class Facts:
    """One kernel on one architecture.

    Attributes:
        kernel: its name; demangled where c++filt is there, without parameters.
        arch: compute capability as in sm_80.
        registers: of a thread.
        stack: bytes of a thread: arrays in local memory, and registers kept there.
        shared: bytes of static shared memory of a block.
        threads: of a block, at most: the launch bounds; 0 where the kernel states none.
        spills: instructions that load or store local memory.
        loads, loads128, stores, stores128: instructions on global memory, and those of 16 bytes a thread.
        shared128: instructions that load or store 16 bytes a thread of shared memory.
        atomics: atomic instructions on global memory.
        swaps: instructions that compare and swap: a loop in place of an atomic that the hardware lacks.
        products: instructions of the tensor cores.
    """

    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    threads: int
    spills: int
    loads: int
    loads128: int
    stores: int
    stores128: int
    shared128: int
    atomics: int
    swaps: int
    products: int


COUNTED = tuple(field.name for field in fields(Facts))[6:]  # the fields that count instructions


def read_facts(path: Path) -> list[Facts]:
    """Facts of every kernel in a cubin, object file or library, for every architecture it was built for.

    Raises:
        ValueError: the file holds no GPU code.
        RuntimeError: the reader failed.
    """
    listing = _cuobjdump("-sass", path)
    first = _ARCH.search(listing)
    if first is None:
        raise ValueError(f"{path}: expected GPU code, found none")
    only = _number(first)  # a cubin holds one architecture, which its other dumps do not name
    usage = {
        (arch, name): [int(n) for n in numbers]
        for arch, text in _by_arch(_cuobjdump("-res-usage", path), only)
        for name, *numbers in _USAGE.findall(text)
    }
    threads = {
        (arch, name): _threads(text)
        for arch, dump in _by_arch(_cuobjdump("-elf", path), only)
        for name, text in _named_parts(_SECTION, dump)
    }
    return [
        _facts(_demangled(name), arch, usage[arch, name], threads[arch, name], _INSTRUCTION.findall(code))
        for arch, text in _by_arch(listing, only)
        for name, code in _named_parts(_CODE, text)
    ]


def _named_parts(head: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """The text after each head line, up to the next, with the name in the head."""
    _, *parts = head.split(text)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _threads(section: str) -> int:
    """Threads of a block by the launch bounds x * y * z."""
    bounds = _BOUNDS.search(section)
    return math.prod(int(size, 16) for size in bounds[1].split()) if bounds else 0


def _facts(kernel: str, arch: int, usage: list[int], threads: int, instructions: list[str]) -> Facts:
    registers, stack, shared, _ = usage
    system = SYSTEM_SHARED if arch >= FIRST_WITH_SYSTEM_SHARED else 0
    counts = Counter(kind for name in instructions for kind in _kinds(name))
    return Facts(kernel, arch, registers, stack, max(0, shared - system), threads, *(counts[kind] for kind in COUNTED))


def _kinds(instruction: str) -> list[str]:
    """What an instruction counts as."""
    base, *modifiers = instruction.split(".")
    wide = "128" in modifiers
    tests = (
        base in ("LDL", "STL"),
        base in ("LDG", "LD", "LDGSTS"),
        base in ("LDG", "LD", "LDGSTS") and wide,
        base in ("STG", "ST"),
        base in ("STG", "ST") and wide,
        base in ("LDS", "STS") and wide,
        base in ("ATOM", "ATOMG", "RED", "REDG"),
        base in ("ATOM", "ATOMG", "ATOMS") and any(m.startswith("CAS") for m in modifiers),
        _TENSOR_CORE.fullmatch(base) is not None,
    )
    return [kind for kind, holds in zip(COUNTED, tests, strict=True) if holds]


def _by_arch(text: str, only: int) -> list[tuple[int, str]]:
    """A dump, cut where another architecture begins; one that names none is of `only`."""
    marks = list(_ARCH.finditer(text))
    if not marks:
        return [(only, text)]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [(_number(mark), text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]


def _number(mark: re.Match[str]) -> int:
    return int(mark[1] or mark[2])


@cache
def _demangled(name: str) -> str:
    """A C++ kernel's name with its template arguments, without its parameters; another's as it is."""
    tool = shutil.which("c++filt")
    if tool is None or not name.startswith("_Z"):
        return name
    full = subprocess.run([tool, "--no-params", name], capture_output=True, text=True, check=True).stdout
    return full.strip().replace("(anonymous namespace)::", "")


@cache
def _tool(name: str) -> str:
    beside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name}: expected in triton's wheel ({beside}) or on the PATH, found in neither")
    return found


def _cuobjdump(option: str, path: Path) -> str:
    run = subprocess.run([_tool("cuobjdump"), option, str(path)], capture_output=True, text=True, check=False)
    if run.returncode and "does not contain device code" not in run.stderr:
        raise RuntimeError(f"cuobjdump {option} {path}: {run.stderr.strip()}")
    return run.stdout
