"""The connections of a matrix line by line, and loops that run over them, a part of the lines on each of torch's threads.

The same bits come out on any number of threads: a thread computes whole lines.

Legend: E connections.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from grow.kernels.loops import Loops

PANEL_COLUMNS = 1024
"""Columns whose tiles fit half of a core's own cache, usually 1 MiB."""

PANEL_CONNECTIONS = 64
"""Connections of a row in a panel that make up for its sum being written and read once more."""


ELEMENTS_OF_A_THREAD = 2**15
"""Elements that make up for waking a thread, where each is computed alone."""


@dataclass(frozen=True, eq=False)
class Lines:
    """The connections of each row of a matrix: ``starts`` (rows * panels + 1,) into their ``others`` (E,), the columns that they read."""

    starts: Tensor
    others: Tensor
    panels: int = 1

    @staticmethod
    def of(starts: Tensor, others: Tensor, width: int) -> Lines:
        """Lines of rows that start so (rows + 1,), and read these of ``width`` columns (E,), in ascending order within each row."""
        rows = len(starts) - 1
        panels = max(1, min(-(-width // PANEL_COLUMNS), len(others) // (PANEL_CONNECTIONS * rows)))
        if panels == 1:
            return Lines(starts, others)
        row = torch.arange(rows).repeat_interleave(starts.diff())
        ends = torch.bincount(row * panels + others // -(-width // panels), minlength=rows * panels).cumsum(0)
        return Lines(torch.cat([ends.new_zeros(1), ends]).int(), others, panels)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return (len(self.starts) - 1) // self.panels

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Panels, and where the indices lie."""
        return self.panels, self.starts.data_ptr(), self.others.data_ptr()

    @cached_property
    def whole(self) -> list[tuple[int, int]]:
        """All rows in one part."""
        return [(0, self.rows)]

    def parts(self) -> list[tuple[int, int]]:
        """First and last row of one part for each of torch's threads, equal in connections."""
        threads = torch.get_num_threads()
        return self.whole if threads == 1 else _parts(self, threads)


def _parts(lines: Lines, threads: int) -> list[tuple[int, int]]:
    rows = lines.rows
    work = lines.starts[:: lines.panels].numpy() + np.arange(rows + 1)  # an empty row costs something too
    bounds = np.searchsorted(work, np.linspace(0, work[-1], threads + 1)[1:-1]).tolist()
    return [(first, last) for first, last in zip([0, *bounds], [*bounds, rows], strict=True) if first < last]


def loops_of(dtype: torch.dtype, batch: int) -> Loops:
    """The loops for a dtype that the kernel declares, and a batch."""
    from grow.kernels.loops import loops  # numba takes longer to import than all else

    return loops(dtype, batch)


def loops_are_loaded() -> bool:
    """Whether the loops have been imported: what comes out alike without them does not wait for that, which takes longer than all else."""
    return "grow.kernels.loops" in sys.modules


def run(loop: Callable[..., None], lines: Lines, *arguments: int) -> None:
    """Run a loop over all lines, a part on each of torch's threads."""
    parts = lines.parts()
    if len(parts) == 1:
        loop(*parts[0], *arguments)
    else:
        _on_threads(lambda first, last: loop(first, last, *arguments), parts)


def in_parts(part: Callable[[int, int], None], count: int, whole: int) -> None:
    """Call with first and last of so many elements: all at once, or as many parts as torch has threads, each a multiple of ``whole``.

    ``part`` must hold what it writes to: after an interrupt it may go on while the caller is gone.
    """
    parts = max(1, min(torch.get_num_threads(), count // ELEMENTS_OF_A_THREAD))
    if parts == 1:
        part(0, count)
    else:
        _on_threads(part, list(pairwise([number * count // parts // whole * whole for number in range(parts)] + [count])))


def _on_threads(part: Callable[[int, int], None], bounds: list[tuple[int, int]]) -> None:
    """Call for all bounds at once, and wait for all of them even where one fails or the wait is interrupted: they write to memory."""
    begun = [_pool(os.getpid(), torch.get_num_threads()).submit(part, *ends) for ends in bounds]
    try:
        wait(begun)
    except BaseException:
        wait(begun)
        raise
    for done in begun:
        done.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this very process: a fork inherits none."""
    return ThreadPoolExecutor(threads, thread_name_prefix="grow-kernel")
