"""Operators for CUDA devices as Triton kernels; on the CPU they run in Triton's interpreter, for tests.

One file an operator: kernels, the launchers that choose their configuration by plain rules, and `KERNELS`,
every form in which each kernel can be launched.
"""
