"""The CUDA operators as nvcc builds them: held to budgets, linked against torch, loaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.budget import load_budgets
from bench.gpu.cuda_library import compile_cuda, nvcc_version
from bench.gpu.judge import judge

ARCHITECTURES = (80, 90)
LINK = """
import sys
import torch
from pathlib import Path
import gkd_fast.ops
from gkd_fast.ops import _build_cuda
_build_cuda.compile_library(Path(sys.argv[1]), "8.0;9.0")
pools = [name + part for name in ("box_mean_pool", "multiscale_roi_align") for part in ("", "_backward")]
anchors = ["match_anchors", "encode_boxes", "sample_balanced", "batched_nms", "sigmoid_focal_loss", "smooth_l1_loss"]
for operator in pools + anchors:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gkd_fast::{operator}", "CUDA"), operator
"""


@pytest.fixture(scope="module", autouse=True)
def needs_nvcc():
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on the PATH")


@pytest.fixture(scope="module")
def kernels():
    return compile_cuda(ARCHITECTURES)


def test_budgets(kernels):
    verdicts, _ = judge(kernels, nvcc_version(), *load_budgets("cuda"))
    assert {key: verdict for key, verdict in verdicts.items() if verdict} == {}


def test_no_kernel_needs_atomics(kernels):
    assert {k.kernel: k.facts.atomics + k.facts.swaps for k in kernels if k.facts.atomics or k.facts.swaps} == {}


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("sum_tiles", "loads128"),
        ("pool_boxes", "loads128"),
        ("pool_rois", "loads128"),
        ("gather_boxes", "stores128"),
        ("gather_rois", "stores128"),
    ],
)
def test_maps_are_read_and_written_16_bytes_at_a_time(kernels, name, fact):
    of_name = [k for k in kernels if f"::{name}<" in k.kernel]
    assert len(of_name) == 3 * len(ARCHITECTURES)
    assert all(getattr(k.facts, fact) >= 4 for k in of_name)


def test_library_links_and_registers_its_operators(tmp_path):
    if torch.version.cuda is None or torch.version.cuda.split(".")[0] != nvcc_version().split()[1].split(".")[0]:
        pytest.skip(f"needs a torch built for CUDA as nvcc is, got {torch.version.cuda} and {nvcc_version()}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "GKD_BACKEND": "reference"}
    command = [sys.executable, "-c", LINK, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
