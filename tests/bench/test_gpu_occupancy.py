"""Occupancy is what NVIDIA's own header computes, which triton's wheel brings."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import triton

from bench.gpu.occupancy import MULTIPROCESSORS, occupancy, resident_blocks

INCLUDE = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
CASES = list(
    product(MULTIPROCESSORS, (1, 2, 3, 4, 5, 8, 16, 32), (16, 33, 64, 65, 127, 128, 168, 255), (0, 1, 4096, 50000))
) + [(arch, 4, 32, shared) for arch in MULTIPROCESSORS for shared in (98304, 163 << 10, (163 << 10) + 1, 227 << 10)]
PROGRAM = r"""
#include <cstdio>
#include <cstring>
#include "cuda_occupancy.h"
int main() {
    int arch, warps, registers, shared, per_block, per_processor;
    while (std::scanf("%d %d %d %d %d %d", &arch, &warps, &registers, &shared, &per_block, &per_processor) == 6) {
        cudaOccDeviceProp device;
        std::memset(&device, 0, sizeof device);
        device.computeMajor = arch / 10;
        device.computeMinor = arch % 10;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = 2048;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10;
        device.sharedMemPerBlockOptin = per_block;
        device.sharedMemPerMultiprocessor = per_processor;
        device.reservedSharedMemPerBlock = 1024;
        device.numSms = 1;
        cudaOccFuncAttributes kernel;
        std::memset(&kernel, 0, sizeof kernel);
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.maxDynamicSharedSizeBytes = shared;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        cudaOccDeviceState state;
        state.cacheConfig = CACHE_PREFER_SHARED;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, warps * 32, shared);
        std::printf("%d\n", error ? 0 : result.activeBlocksPerMultiprocessor);
    }
}
"""


def test_blocks_are_those_of_nvidias_header(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(PROGRAM)
    subprocess.run([compiler, f"-I{INCLUDE}", source, "-o", program], check=True)
    limits = {arch: (m.shared_a_block, m.shared) for arch, m in MULTIPROCESSORS.items()}
    lines = "\n".join(" ".join(map(str, (*case, *limits[case[0]]))) for case in CASES)
    output = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
    theirs = [int(number) for number in output.split()]
    ours = [resident_blocks(*case) for case in CASES]
    assert [c for c, a, b in zip(CASES, ours, theirs, strict=True) if a != b] == []
    assert 0 in ours


def test_occupancy_of_known_kernels():
    assert occupancy(80, warps=8, registers=32, shared=0) == 1.0
    assert occupancy(80, warps=4, registers=128, shared=0) == 0.25
    assert occupancy(90, warps=4, registers=32, shared=100 << 10) == 2 * 4 / 64
    assert occupancy(80, warps=4, registers=32, shared=200 << 10) == 0
