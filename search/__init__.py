"""Runs: searched, looked at, and taken home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.load import LoadedRun

__all__ = ["load_run"]


def load_run(path: str | Path) -> LoadedRun:
    """A run, finished or not, as pandas frames and networks; the run itself is only read. RunNotFoundError where there is none.

    path: of the run's folder, as in ``load_run("runs/mnist-1")``.
    """
    from search.load import loaded

    return loaded(Path(path))
