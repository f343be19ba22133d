"""Which kernel computes a layer: the fastest one of a table of measured times that the caller owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from grow.kernels.base import Kernel, KernelCase, any_structure

Timings: TypeAlias = Callable[[str, KernelCase], float | None]
"""Kernel name and case -> seconds of forward, both gradients and the optimizer's step together; None where nothing was measured."""

ROUNDING = 1e-9
"""Of shares, relative: 0.12 is not more than a fifth above 0.1."""


@dataclass(frozen=True)
class Picked:
    """The kernel that was picked for a layer, and what the layer was like then."""

    kernel: str
    density: float
    rows: int
    columns: int

    def holds(self, kernel: str, now: tuple[float, int, int], within: float) -> bool:
        """Whether a layer that is computed by ``kernel`` is still what it was picked for: density, rows and columns within a share.

        One that has all its connections is another case than one that lacks some, however few.

        >>> picked = Picked("csr", 0.1, 64, 64)
        >>> picked.holds("csr", (0.12, 64, 64), 0.2), picked.holds("csr", (0.121, 64, 64), 0.2), picked.holds("dense", (0.1, 64, 64), 0.2)
        (True, False, False)
        """
        then = (self.density, self.rows, self.columns)
        near = all(abs(new - old) <= within * old * (1 + ROUNDING) for new, old in zip(now, then, strict=True))
        return kernel == self.kernel and near and (now[0] == 1) == (self.density == 1)


def suited(positions: Tensor | None, shape: tuple[int, int], kernels: Iterable[Kernel]) -> frozenset[str]:
    """Of the kernels that are made for some structures, those that are made for this one: sorted flat positions (E,); None: all exist."""
    return frozenset(kernel.name for kernel in kernels if kernel.made_for is not None and kernel.made_for(positions, shape))


def unfit(suited: frozenset[str], kernels: Iterable[Kernel]) -> frozenset[str]:
    """The kernels that cannot compute a structure for which these are made."""
    return frozenset(kernel.name for kernel in kernels if kernel.fits is not any_structure and kernel.name not in suited)


def fastest(case: KernelCase, timings: Timings, kernels: Mapping[str, Kernel]) -> str:
    """The kernel with the smallest measured time, of those that fit; the first one if none was measured. Ties go to the earlier name.

    Kernels that are made for some structures are passed over for others.

    >>> from grow.kernels import KERNELS
    >>> case = KernelCase(rows=1024, columns=1024, density=0.05, batch=128, device="cpu")
    >>> fastest(case, lambda kernel, case: {"dense": 4e-3, "csr": 1e-3, "columns": 1e-4}.get(kernel), KERNELS)
    'csr'
    """
    names = [name for name, kernel in kernels.items() if name not in case.unfit and (kernel.made_for is None or name in case.suited)]
    if not names:
        raise ValueError("kernels is empty, but must name at least one kernel; 'dense' computes every layer")
    seconds = {name: timings(name, case) for name in names}
    measured = {name: value for name, value in seconds.items() if value is not None}
    return min(measured, key=measured.__getitem__) if measured else names[0]
