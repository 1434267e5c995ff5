import pytest
import torch

from gkd_fast import ops
from gkd_fast.ops import _build, _build_cuda


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_toolkit_is_the_one_that_nvcc_names_not_where_it_lies(tmp_path, monkeypatch):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    script(tmp_path / "bin" / "nvcc", f"echo '#$ TOP={home}/bin/..' >&2")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert _build_cuda.toolkit()[0] == home


def test_missing_toolkit_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(RuntimeError, match="nvcc not found: expected a CUDA toolkit in CUDA_HOME or on the PATH"):
        _build_cuda.toolkit()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="nvcc not found"):
        _build_cuda.toolkit()


def test_library_is_named_after_architectures(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert _build_cuda.architectures() == "8.0;9.0"
    assert _build_cuda.fingerprint("8.0") != _build_cuda.fingerprint("8.0;9.0")


def test_libraries_do_not_depend_on_each_others_sources(tmp_path, monkeypatch):
    root = tmp_path / "csrc"
    for name in ("common.h", "cpu/a.cpp", "cuda/a.cu"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr(_build, "source_root", lambda: root)
    cpu, cuda = _build.fingerprint(), _build_cuda.fingerprint("8.0")
    (root / "cuda" / "a.cu").write_text("changed")
    assert _build.fingerprint() == cpu
    assert _build_cuda.fingerprint("8.0") != cuda
    (root / "common.h").write_text("changed")
    assert _build.fingerprint() != cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_device_is_the_reason():
    assert ops.backends()["cuda"] == "no CUDA device"


@pytest.mark.parametrize(("version", "fits"), [("13.0", True), ("13.2", True), ("12.8", False), ("", True)])
def test_the_toolkit_is_of_torchs_major_version(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if fits:
        _build_cuda._require_same_major(version)
    else:
        with pytest.raises(
            RuntimeError, match=r"expected nvcc of CUDA 13, which torch is built for .13\.0., got 12\.8"
        ):
            _build_cuda._require_same_major(version)
