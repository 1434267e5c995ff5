"""How many warps of a kernel fit on a multiprocessor: the rules of NVIDIA's cuda_occupancy.h, restated.

Limits: CUDA C++ Programming Guide, technical specifications per compute capability.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
MAX_WARPS, MAX_BLOCKS = 64, 32  # of a multiprocessor
REGISTERS, MAX_REGISTERS_A_THREAD = 65536, 255
REGISTER_UNIT = 256  # a warp's registers are handed out in this many
PARTITIONS = 4  # of a multiprocessor; each holds a quarter of the warps and registers
SHARED_UNIT = 128  # bytes
SYSTEM_SHARED = 1024  # bytes that the system takes of every block's shared memory


@dataclass(frozen=True)
class Multiprocessor:
    """What differs between the architectures: bytes of shared memory, of all blocks and of one."""

    shared: int
    shared_a_block: int


MULTIPROCESSORS = {
    80: Multiprocessor(shared=164 << 10, shared_a_block=163 << 10),
    90: Multiprocessor(shared=228 << 10, shared_a_block=227 << 10),
    100: Multiprocessor(shared=228 << 10, shared_a_block=227 << 10),
}


def resident_blocks(arch: int, warps: int, registers: int, shared: int) -> int:
    """Blocks on a multiprocessor at a time; 0 where a block can't be launched at all.

    Args:
        arch: 80, 90 or 100.
        warps: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.
    """
    limits = MULTIPROCESSORS[arch]
    a_warp = _up(registers * WARP, REGISTER_UNIT)
    too_large = (
        warps > MAX_WARPS // 2
        or registers > MAX_REGISTERS_A_THREAD
        or a_warp * _up(warps, PARTITIONS) > REGISTERS
        or shared > limits.shared_a_block
    )
    if too_large:
        return 0
    return min(
        MAX_BLOCKS,
        MAX_WARPS // warps,
        REGISTERS // PARTITIONS // a_warp * PARTITIONS // warps if a_warp else MAX_BLOCKS,
        limits.shared // _up(shared + SYSTEM_SHARED, SHARED_UNIT),
    )


def occupancy(arch: int, warps: int, registers: int, shared: int) -> float:
    """Resident warps as a fraction of those that a multiprocessor can hold; arguments as above."""
    return resident_blocks(arch, warps, registers, shared) * warps / MAX_WARPS


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
