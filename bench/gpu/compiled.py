"""Every Triton kernel in every form it can be launched in, compiled for every architecture; no GPU is needed."""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import gkd_fast.kernels
from bench.gpu.cubin import Facts, read_facts

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True, order=True)
class Job:
    """One compilation: a kernel of a module, the number of the form it is launched in, an architecture."""

    module: str
    kernel: str
    form: int
    arch: int


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        kernel: its name.
        form: types, constants and schedule in words; with the name it is a key.
        shared: bytes of shared memory of a block, static and dynamic.
        facts: of the machine code; its launch bounds are the block's threads.
    """

    kernel: str
    form: str
    shared: int
    facts: Facts


def list_jobs(architectures: Sequence[int] = ARCHITECTURES) -> list[Job]:
    """All forms of all kernels in `gkd_fast.kernels`."""
    names = [m.name for m in pkgutil.iter_modules(gkd_fast.kernels.__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"gkd_fast.kernels.{name}") for name in names]
    return [
        Job(module.__name__, kernel, form, arch)
        for module in modules
        for kernel, spec in getattr(module, "KERNELS", {}).items()
        for form in range(len(spec.signatures))
        for arch in architectures
    ]


def compile_job(job: Job) -> Compiled:
    """Compile one form and read its machine code."""
    spec = importlib.import_module(job.module).KERNELS[job.kernel]
    form = spec.signatures[job.form]
    compiled = triton.compile(
        ASTSource(spec.fn, form.signature, form.constexprs, form.attrs),
        target=GPUTarget("cuda", job.arch, 32),
        options=form.options,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        (facts,) = read_facts(path)
    shared = facts.shared + compiled.metadata.shared
    return Compiled(job.kernel, describe_form(form), shared, facts)


def describe_form(form: Any) -> str:
    """A form in words: the types of the pointers in order, the constants, the schedule."""
    pointers = groupby(kind[1:] for kind in form.signature.values() if kind.startswith("*"))
    types = [f"{kind}*{len(list(equal))}" for kind, equal in pointers]
    constants = " ".join(f"{name}={value}" for name, value in form.constexprs.items())
    return f"{' '.join(types)}; {constants}; {form.num_warps} warps, {form.num_stages} stages"


def compile_all(jobs: Sequence[Job], processes: int = 2) -> list[Compiled]:
    """Compile the jobs in fresh processes: Triton compiles on one core."""
    if processes == 1:
        return [compile_job(job) for job in jobs]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_job, jobs, chunksize=max(1, len(jobs) // (8 * processes))))


def toolchain() -> str:
    """What compiled: budgets are made for one version."""
    return f"triton {triton.__version__}"
