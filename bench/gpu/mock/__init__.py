"""A CUDA device that is not there: torch's and Triton's real host side runs on it, its kernels do nothing.

It takes the place of driver, runtime and cuBLAS by LD_PRELOAD (`device.c`), so it is chosen when a process starts:
`environment()` is what a process needs for it, and within that process `counted()` says what was launched, copied and
waited for. Times are the host's alone; values mean nothing (`zeros` makes them possible indices). cuDNN has to be off
(`torch.backends.cudnn.enabled`).
"""

from bench.gpu.mock.counting import Counts, counted, is_loaded
from bench.gpu.mock.library import MockUnavailableError, environment

__all__ = ["Counts", "MockUnavailableError", "counted", "environment", "is_loaded"]
