"""How much the compiled loops may keep in the CPU's vector registers: what does not fit goes through memory at every connection."""

from __future__ import annotations

from functools import cache


@cache
def wide() -> bool:
    """Whether there are 32 registers of 64 bytes (AVX-512), and not 512 bytes in all, as with AVX2 (16 of 32) and NEON (32 of 16)."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def block_side(element_size: int) -> int:
    """Elements of a side of the blocks by which a matrix is transposed: a wide register's; else what was fastest on Zen 3."""
    return 64 // element_size if wide() else 8
