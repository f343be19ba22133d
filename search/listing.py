"""The runs of a folder, one row each: what `grow runs` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from search.errors import RunNotFoundError
from search.options import RunState
from search.results import SCHEMA_VERSION, document
from search.rundir import RunFolder, run_folders


class ListedRun(TypedDict):
    """One run; of a damaged one only its name, its path and the reason are known. trials_done: those that have ended."""

    run: str
    path: str
    state: RunState | Literal["damaged"]
    study: str | None
    trials_done: int | None
    on_front: int | None
    hypervolume: float | None
    reason: str | None


class Listing(TypedDict):
    """All runs of a folder."""

    schema_version: int
    runs_dir: str
    runs: list[ListedRun]


def listing(runs_dir: Path) -> Listing:
    """The runs of a folder, by name; none where it is not there."""
    return {"schema_version": SCHEMA_VERSION, "runs_dir": str(runs_dir), "runs": [_listed(folder) for folder in run_folders(runs_dir)]}


def _listed(folder: RunFolder) -> ListedRun:
    path = str(folder.path)
    try:
        found = document(folder)
    except RunNotFoundError as error:
        return {
            "run": folder.name,
            "path": path,
            "state": "damaged",
            "study": None,
            "trials_done": None,
            "on_front": None,
            "hypervolume": None,
            "reason": str(error),
        }
    return {
        "run": found["run"],
        "path": path,
        "state": found["state"],
        "study": found["study"],
        "trials_done": sum(trial["state"] != "running" for trial in found["trials"]),
        "on_front": len(found["pareto"]),
        "hypervolume": found["hypervolume"],
        "reason": found["reason"],
    }
