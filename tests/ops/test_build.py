"""The compiled library comes to its place whole, whatever earlier builds left there."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from gkd_fast.errors import InputError
from gkd_fast.ops import _build, _dispatch


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built and loaded, without a compiler."""
    done: list[str] = []

    def fake(sources: Path, name: str, directory: str, options: dict) -> None:
        done.append("built")
        Path(directory, f"{name}.so").write_text("whole")

    monkeypatch.setattr(_build, "_compile", fake)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: done.append("loaded"))
    return done


def test_a_build_that_was_killed_leaves_nothing_that_matters(tmp_path: Path, compiled: list[str]):
    (tmp_path / "lock").touch()  # of torch's builder
    (tmp_path / "build-old").mkdir()
    (tmp_path / "build-old/name.so").write_text("half")
    library = _build.compile_folder("cpu", "name", tmp_path)
    assert library.read_text() == "whole"
    assert compiled == ["built"]


def test_a_failed_build_leaves_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(sources: Path, name: str, directory: str, options: dict) -> None:
        Path(directory, f"{name}.so").write_text("half")
        raise RuntimeError("error: no")

    monkeypatch.setattr(_build, "_compile", fail)
    with pytest.raises(RuntimeError):
        _build.compile_folder("cpu", "name", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["building"]


def test_a_library_that_another_process_built_is_loaded(tmp_path: Path, compiled: list[str]):
    (tmp_path / "name.so").write_text("whole")
    _build.compile_folder("cpu", "name", tmp_path)
    assert compiled == ["loaded"]


def hold(file: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with _build._alone(file):
        ready.set()
        time.sleep(60)


def test_a_killed_process_lets_go(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "building", ready))
    process.start()
    assert ready.wait(60)
    waiting = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from gkd_fast.ops import _build\nfrom pathlib import Path\n"
            f"with _build._alone(Path({str(tmp_path / 'building')!r})): print('in')",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(5)
    process.kill()
    assert waiting.communicate(timeout=60)[0] == "in\n"
    process.join()


def test_the_cause_of_a_failed_load_is_told():
    try:
        try:
            raise OSError("libcudart.so.12: cannot open shared object file")
        except OSError as error:
            raise OSError("Could not load this library: /a/b.so") from error
    except OSError as error:
        reason = _dispatch._short_reason(error)
    assert reason == "Could not load this library: /a/b.so: libcudart.so.12: cannot open shared object file"


def test_amd_devices_are_not_nvidias(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert _dispatch._unusable_device() == "expected an NVIDIA device, got one of AMD (ROCm 6.2)"


def test_triton_without_a_compiler_is_not_available(monkeypatch: pytest.MonkeyPatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(_dispatch, "_unusable_device", lambda: "")

    class Driver:
        def get_current_target(self) -> None:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(type(triton.runtime.driver), "active", Driver(), raising=False)
    monkeypatch.setattr(_dispatch, "triton_failure", _dispatch.triton_failure.__wrapped__)
    assert _dispatch.load_triton.__wrapped__().startswith("Failed to find C compiler")


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no library from an install."""
    sources = _build.source_root()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_build, "PACKAGE", tmp_path)
    monkeypatch.setattr(_build, "source_root", lambda: sources)
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


COMPILERS = {
    "broken": "c++: fatal error: cannot execute 'cc1plus': execvp: No such file or directory",
    "disk full": "/tmp/a.s: fatal error: error writing to /tmp/a.s: No space left on device",
}


@pytest.mark.parametrize("kind", COMPILERS)
def test_what_the_compiler_says_is_the_reason(kind: str, nothing_built: Path, monkeypatch: pytest.MonkeyPatch):
    compiler = script(nothing_built / "c++", f'[ $# = 1 ] && echo 12.0.0 && exit; echo "{COMPILERS[kind]}" >&2; exit 1')
    monkeypatch.setenv("CXX", str(compiler))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a compiler that it does not know
        assert COMPILERS[kind] in _dispatch.load_cpu.__wrapped__()
    assert not list(nothing_built.glob("cache/**/*.so"))


def test_a_cache_that_cannot_be_written_is_the_reason(nothing_built: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    reason = _dispatch.load_cpu.__wrapped__()
    assert "Read-only file system" in reason
    assert str(nothing_built / "cache") in reason


def test_no_room_for_the_library_is_the_reason(
    nothing_built: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    assert "No space left on device" in _dispatch.load_cpu.__wrapped__()
    assert compiled == ["built"]
    assert not list(nothing_built.glob("cache/**/*.so"))


def test_a_library_that_was_cut_off_is_named(nothing_built: Path):
    name = _build.fingerprint()
    library = _build.cache_directory(name) / f"gkd_fast_{name}.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert _build.built_library() == library
    assert str(library) in _dispatch.load_cpu.__wrapped__()


NVCCS = {
    "none": ("", "nvcc not found: expected a CUDA toolkit in CUDA_HOME or on the PATH"),
    "another major version": ("echo 'release 11.8, V11.8.89'", "expected nvcc of CUDA 13, which torch is built for"),
    "broken": ("echo 'nvcc fatal   : Could not set up the environment' >&2; exit 1", "nvcc fatal"),
}


@pytest.mark.parametrize("kind", NVCCS)
def test_what_is_wrong_with_nvcc_is_the_reason(kind: str, nothing_built: Path, monkeypatch: pytest.MonkeyPatch):
    text, reason = NVCCS[kind]
    if text:
        script(nothing_built / "bin/nvcc", text)
    monkeypatch.setenv("CUDA_HOME", str(nothing_built))
    monkeypatch.setenv("CXX", str(script(nothing_built / "c++", "exit 0")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_dispatch, "_unusable_device", lambda: "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a compiler that it does not know
        assert reason in _dispatch.load_cuda.__wrapped__()
    assert not list(nothing_built.glob("cache/**/*.so"))


def test_without_visible_devices_there_are_none():
    told = subprocess.run(
        [sys.executable, "-m", "gkd_fast.ops"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(_build.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split(None, 1) for line in told.splitlines() if "CUDA" in line] == [
        ["triton", "no CUDA device"],
        ["cuda", "no CUDA device"],
    ]


def test_a_backend_that_is_missing_where_it_was_named_is_an_error_of_the_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(_dispatch._LOADERS, "cuda", lambda: "nvcc not found")
    message = "box_mean_pool: backend 'cuda' is not available: nvcc not found"
    for kind in (RuntimeError, InputError):
        with pytest.raises(kind, match=message):
            _dispatch._resolve("cuda", "box_mean_pool", "cuda", ("cpu", "cuda"))


def test_where_none_was_named_the_reference_runs_with_one_warning(monkeypatch: pytest.MonkeyPatch):
    reason = "nvcc not found, says this test"  # a reason is told once
    monkeypatch.setitem(_dispatch._LOADERS, "cuda", lambda: reason)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for operator in ("box_mean_pool", "encode_boxes"):
            assert _dispatch._resolve("auto", operator, "cuda", ("cpu", "cuda")) == "reference"
    assert [str(warning.message) for warning in caught] == [
        f"gkd_fast: the slower reference operators run on cuda: {reason}"
    ]
