"""A layer's connections after an edit, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grow.axes import IntArray

Index: TypeAlias = IntArray | None
"""Sorted flat positions (E,) of a layer's connections; None when all exist."""


@dataclass(frozen=True, eq=False)
class Connected:
    """Sorted flat positions (E,) of a layer's connections after some came or went.

    slots: where each stood among those before, -1 where it is new, (E,); of a layer whose mask is at hand, the new mask instead,
    flattened, and the positions that are new. gone: where those that went stood among those before.
    """

    positions: IntArray
    slots: IntArray | None = None
    mask: NDArray[np.bool_] | None = None
    added: IntArray | None = None
    gone: IntArray | None = None


def as_index(positions: IntArray, possible: int) -> Index:
    """Sorted positions as an index: None where all exist."""
    return None if len(positions) == possible else positions
