"""Which cases of a table of two kinds of parameters the fast suite runs."""

from collections.abc import Collection, Iterable, Mapping

import pytest
from _pytest.mark import ParameterSet

Cases = Mapping[str, tuple[object, ...]]
"""Parameters by their names."""

STORAGES = ("dense", "csr")
"""A kernel for each storage: what an edit carries depends on the storage alone."""


def named(names: Iterable[str]) -> Cases:
    """Parameters that are their own names."""
    return {name: (name,) for name in names}


def crossed(rows: Cases, columns: Cases, whole: Collection[str] = ()) -> list[ParameterSet]:
    """Every row with every column.

    The fast suite has the rows in ``whole`` with every column, and the others along the diagonal, so that every row and every column is
    there at least once. The rest is slow.
    """
    turns = min(len(rows), len(columns))
    return [
        pytest.param(
            *rows[row], *columns[column], id=f"{row}-{column}", marks=[pytest.mark.slow] * (row not in whole and i % turns != j % turns)
        )
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
