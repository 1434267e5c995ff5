"""The compiled library comes to its place whole, whatever earlier builds left there."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

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
