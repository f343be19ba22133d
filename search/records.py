"""The records of a trial that are looked at later: its recipe, how it ended, what the clock said of it, and the test set.

Anything may have happened to these files, so what is in them is checked here: a field that is used has its type, and a figure is finite.
Fields that earlier versions did not write may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeGuard

from pydantic import AllowInfNan, Strict, StrictInt, TypeAdapter, ValidationError

from search.errors import RunNotFoundError
from search.files import JsonObject, read_json

RESULT = "result"
"""What the last checkpoint of a trial holds beside the training: how it ended, as `result.json` does."""

Figure: TypeAlias = Annotated[float, Strict(), AllowInfNan(False)]
"""A finite number; a text that reads as one is none."""


@dataclass(frozen=True, kw_only=True)
class _Complete:
    """A trial that was trained to its end: see `search.build.Figures`."""

    state: Literal["complete"]
    accuracy: Figure
    predicted_samples_per_s: Figure
    density: Figure = 0
    connections: StrictInt = 0
    units: Mapping[str, StrictInt] = field(default_factory=dict)
    crossing_units: StrictInt = 0
    communication_volume: StrictInt = 0
    bytes_per_step: StrictInt = 0
    grown: StrictInt = 0
    pruned: StrictInt = 0
    memory_bytes: Figure = 0
    device_memory_bytes: Figure = 0
    word: Literal["predicted", "simulated"] = "predicted"
    beyond: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A trial that has no figures, and why."""

    state: Literal["failed", "infeasible", "stopped_early"]
    failure: str
    expected_accuracy: Figure = 0


@dataclass(frozen=True, kw_only=True)
class _Measured:
    samples_per_s: Figure


@dataclass(frozen=True, kw_only=True)
class _Tested:
    accuracy: Figure


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What is shown of a recipe; `search.recipe.Recipe` is the whole."""

    devices: StrictInt = 1
    strategy: str = "single"


def checked(path: Path) -> JsonObject:
    """What one of these files holds. RunNotFoundError where it is missing or damaged, or holds something else."""
    found = read_json(path)
    try:
        _check(path.name, found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its object"
        raise RunNotFoundError(f"{path} is damaged at {place} ({first['msg']}); resume the run, which goes on without it") from error
    return found


def checked_if_valid(path: Path) -> JsonObject | None:
    """What one of these files holds, None where that is not there or not whole."""
    try:
        return checked(path)
    except RunNotFoundError:
        return None


def is_result(found: object) -> TypeGuard[JsonObject]:
    """Whether this is what `result.json` may hold."""
    try:
        _check("result.json", found)
    except ValidationError:
        return False
    return True


def _check(name: str, found: object) -> None:
    """ValidationError unless a file of that name may hold this."""
    complete = isinstance(found, dict) and found.get("state") == "complete"
    _shape("complete" if name == "result.json" and complete else name).validate_python(found)


@cache
def _shape(name: str) -> TypeAdapter[object]:
    shapes = {"recipe.json": _Recipe, "complete": _Complete, "result.json": _Ended, "measured.json": _Measured, "test.json": _Tested}
    return TypeAdapter(shapes[name])
