"""Parameter ranges as data, and how a trial draws from them. Every ``suggest_*`` call of the project is in this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, TypeAlias, cast

from search.recipe import BY_UNITS, PRICED

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Value: TypeAlias = str | int | float | bool
"""What a recipe field may be drawn as."""


@dataclass(frozen=True)
class Choice:
    """One of a few values.

    >>> "dense" in Choice(("erk", "dense"))
    True
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"the values of a Choice are {self.values}, but must be at least one, each once; mend the list")

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that must be allowed for all to be."""
        return self.values

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Draws a value."""
        return cast(Value, trial.suggest_categorical(name, self.values))

    def __contains__(self, value: object) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Float:
    """Any number from ``low`` to ``high``, uniform, or uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, self.log)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that must be allowed for all to be."""
        return self.low, self.high

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Draws a value."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Integer:
    """Any of ``low``, ``low + step``, ... up to ``high``, uniform, or uniform in its logarithm."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, self.log)
        if self.step < 1 or (self.log and self.step > 1) or (self.high - self.low) % self.step:
            raise ValueError(
                f"step is {self.step}, but must be positive, lead from {self.low} to {self.high}, and be 1 in a logarithmic range;"
                " choose another step or another high"
            )

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that must be allowed for all to be."""
        return self.low, self.high

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Draws a value."""
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high and (value - self.low) % self.step == 0


Range: TypeAlias = Choice | Float | Integer

_TYPES: Mapping[str, type[Range]] = {"choice": Choice, "float": Float, "integer": Integer}


def idle(values: Mapping[str, object]) -> dict[str, Value]:
    """The fields that decide nothing, given the devices, the strategy and the pattern, with the values that stand in for them.

    >>> idle({"devices": 1})
    {'strategy': 'single', 'price': 0.0, 'imbalance': 0.0}
    >>> idle({"devices": 2, "strategy": "units", "pattern": "block_4x4"})
    {'price': 0.0}
    """
    if values.get("devices") == 1:
        return {"strategy": "single", "price": 0.0, "imbalance": 0.0}
    if values.get("strategy") not in BY_UNITS and "layouts" not in values:  # no units are split, so none are communicated
        return {"price": 0.0, "imbalance": 0.0}
    if values.get("pattern", PRICED) != PRICED:
        return {"price": 0.0}
    return {}


def suggest(trial: BaseTrial, ranges: Mapping[str, Range], settings: Mapping[str, object]) -> dict[str, object]:
    """All settings, and a value for every range: drawn where it decides anything, else the one that stands in for it."""
    values = dict(settings)
    first = [name for name in ("devices", "strategy", "pattern") if name in ranges]
    for name in [*first, *(name for name in ranges if name not in first)]:
        if name not in idle(values):
            values[name] = ranges[name].suggest(trial, name)
    return values | idle(values)


def up_to(ranges: Mapping[str, Range], devices: int) -> dict[str, Range]:
    """The same ranges with no more than ``devices`` devices.

    >>> up_to({"devices": Integer(1, 8)}, 2)
    {'devices': Integer(low=1, high=2, log=False, step=1)}
    """
    allowed = ranges.get("devices")
    if not isinstance(allowed, Integer):
        return dict(ranges)
    if devices < allowed.low:
        raise ValueError(f"devices is {devices}, but must be at least {allowed.low} in this study; ask for more")
    high = min(allowed.high, devices)
    return dict(ranges) | {"devices": replace(allowed, high=high - (high - allowed.low) % allowed.step)}


def to_json(ranges: Mapping[str, Range]) -> dict[str, dict[str, object]]:
    """The ranges as JSON objects.

    >>> to_json({"density": Float(0.1, 0.5, log=True)})
    {'density': {'type': 'float', 'low': 0.1, 'high': 0.5, 'log': True}}
    """
    return {name: {"type": type(values).__name__.lower(), **asdict(values)} for name, values in ranges.items()}


def from_json(objects: Mapping[str, Mapping[str, object]]) -> dict[str, Range]:
    """The ranges of ``to_json``."""
    return {
        name: _TYPES[str(fields["type"])](**{key: value for key, value in fields.items() if key != "type"})  # type: ignore[arg-type]
        for name, fields in objects.items()
    }


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not (isfinite(low) and isfinite(high) and low <= high):
        raise ValueError(f"the range is {low} to {high}, but must be of finite numbers and not end before it begins; swap or mend its ends")
    if log and low <= 0:
        raise ValueError(f"low is {low}, but must be positive in a logarithmic range; raise it or leave log out")
