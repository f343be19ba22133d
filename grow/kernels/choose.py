"""Which kernel computes a layer: the fastest one of a table of measured times that the caller owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from grow.kernels.base import KernelCase

Timings: TypeAlias = Callable[[str, KernelCase], float | None]
"""Kernel name and case -> seconds of forward, both gradients and the optimizer's step together; None where nothing was measured."""


def fastest(case: KernelCase, timings: Timings, kernels: Iterable[str]) -> str:
    """The kernel with the smallest measured time, of those that fit; the first one if none was measured. Ties go to the earlier name.

    >>> case = KernelCase(rows=1024, columns=1024, density=0.05, batch=128, device="cpu")
    >>> fastest(case, lambda kernel, case: {"dense": 4e-3, "csr": 1e-3}.get(kernel), ["dense", "csr"])
    'csr'
    """
    names = [name for name in kernels if name not in case.unfit]
    if not names:
        raise ValueError("kernels is empty, but must name at least one kernel; 'dense' computes every layer")
    seconds = {name: timings(name, case) for name in names}
    measured = {name: value for name, value in seconds.items() if value is not None}
    return min(measured, key=measured.__getitem__) if measured else names[0]
