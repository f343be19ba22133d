"""What `grow run` would do, without doing it: configuration with sources, search space, devices and the time it may take."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from search.definition import StudyDefinition, StudyReference
from search.errors import ChildError, ConfigurationError, StoppedError
from search.options import Options, Plan, RunRecord
from search.process import noted_signals, spawn, wait
from search.recipe import default, settable
from search.rundir import RunFolder
from search.slots import slots_of
from search.space import Choice, Range, from_json

DEFAULT = "default"


class Value(TypedDict):
    """A value and where it comes from. What is searched has the text of its range."""

    value: object
    source: str
    searched: bool


def configuration(
    options: Options, study_sha256: str | None, sources: Mapping[str, str], place: Mapping[str, object] | None = None
) -> dict[str, dict[str, Value]]:
    """Every option of the run and every field of the recipe that is not the run's own, with its value and source.

    place: the options that say where the run is to be and under which name, which are no part of what it is.
    """
    definition = StudyReference(options.study, study_sha256).load()
    ranges = definition.fixing(options.settings).ranges(options.devices_per_trial)
    run = {
        name: Value(value=value, source=sources.get(name, DEFAULT), searched=False)
        for name, value in {**asdict(options), **(place or {})}.items()
        if name != "settings"
    }
    return {"run": run, "set": {name: _field(name, options, definition, ranges, sources) for name in settable()}}


def _field(name: str, options: Options, definition: StudyDefinition, ranges: Mapping[str, Range], sources: Mapping[str, str]) -> Value:
    if name in options.settings:
        return Value(value=options.settings[name], source=sources.get(f"set.{name}", DEFAULT), searched=False)
    study = f"study {definition.name}"
    if name in definition.settings:
        return Value(value=definition.settings[name], source=study, searched=False)
    if name in ranges:
        return Value(value=described(ranges[name]), source=study if name in definition.parameters else DEFAULT, searched=True)
    return Value(value=default(name), source=DEFAULT, searched=False)


def described(values: Range) -> str:
    """A range in words.

    >>> described(Choice(("erk", "dense")))
    'erk, dense'
    """
    if isinstance(values, Choice):
        return ", ".join(map(str, values.values))
    return f"{values.low:g} to {values.high:g}{', logarithmic' if values.log else ''}"


def as_toml(found: Mapping[str, Mapping[str, Value]]) -> str:
    """The configuration as TOML that `--config` reads, with the source of every value beside it."""
    lines = ["[run]"]
    for name, field in found["run"].items():
        lines.append(f"# {name}: none, {field['source']}" if field["value"] is None else _line(name, field))
    lines += ["", "[run.set]"]
    lines += [f"# {name}: searched, {field['value']}, {field['source']}" if field["searched"] else _line(name, field)
              for name, field in found["set"].items()]  # fmt: skip
    return "\n".join(lines)


def _line(name: str, field: Value) -> str:
    return f"{name} = {json.dumps(field['value'], ensure_ascii=False)}  # {field['source']}"


def rehearse(options: Options, study_sha256: str | None) -> Plan:
    """Prepare the run in a folder that is thrown away: the data are found, the start network is traced, the devices are profiled."""
    with tempfile.TemporaryDirectory(prefix="grow-rehearsal-") as place:
        folder = RunFolder(Path(place))
        options.write(folder)
        RunRecord(run="rehearsal", created_at="", versions={}, study_sha256=study_sha256).write(folder)
        with noted_signals() as signals:
            try:
                code = wait(spawn("search.prepare", [place], stdout=2), signals)
            except StoppedError as error:
                raise StoppedError(error.exit_code - 128) from error
        if code != 0:
            raise ChildError(code)
        plan = RunRecord.read(folder).plan
    if plan is None:
        raise ConfigurationError("plan is missing after preparing, but must be there; run again with --debug")
    return plan


def steps_of(plan: Plan) -> int:
    """Steps of a trial, the most where they are searched."""
    searched = from_json(plan.ranges).get("steps")
    given = [plan.settings.get("steps", default("steps"))] if searched is None else list(searched.ends)
    return max(value for value in given if isinstance(value, int))


def trials_at_once(options: Options, plan: Plan) -> int:
    """Trials that train side by side."""
    return len(slots_of(options, plan))


def estimate_s(options: Options, plan: Plan) -> float | None:
    """Seconds of the search if every network were as dense as the start network, so at most; None where that cannot be told."""
    if plan.dense_step_s is None:
        return None
    return options.trials * steps_of(plan) * plan.dense_step_s / trials_at_once(options, plan)
