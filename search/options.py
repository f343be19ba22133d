"""What the user asked for, and what the run is: the two records at the top of a run folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from search.errors import ConfigurationError, RunNotFoundError, suggestion
from search.files import read_json, write_json, write_text
from search.rundir import RunFolder

SCHEMA_VERSION = 1

DeviceChoice: TypeAlias = Literal["auto", "cuda", "cpu"]
ThroughputChoice: TypeAlias = Literal["predicted", "measured"]
SamplerChoice: TypeAlias = Literal["tpe", "nsga2", "random", "gp"]
RunState: TypeAlias = Literal["running", "complete", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for: `config.toml`.

    study: an installed name, or the absolute path of a file and a name in it. gpus: devices to plan for. gpus_per_trial: how many of them
    a trial has to itself, None for a plan for all of them. trials: the budget, a
    total that counts the two baselines. tolerance: accepted loss of validation accuracy against trial 0, in points.
    early_stopping: whether trials end that cannot reach the front any more, see `search.early_stopping`.
    settings: recipe fields that the user fixed. hardware: a preset or the absolute path of a profile, None for this machine's own.
    storage: URL, without its password, of the storage that several processes share, None where one process keeps the run's own journal;
    lease_s: seconds without a sign of life after which they take over from one of them.
    """

    study: str
    gpus: int
    network: str | None = None
    trials: int = 12
    seed: int = 0
    tolerance: float = 1.0
    device: DeviceChoice = "auto"
    hardware: str | None = None
    throughput: ThroughputChoice = "predicted"
    sampler: SamplerChoice = "tpe"
    early_stopping: bool = False
    data_dir: str | None = None
    storage: str | None = None
    lease_s: float = 60.0
    gpus_per_trial: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("gpus", self.gpus, self.gpus >= 1, "at least 1")
        each = self.devices_per_trial
        _require("gpus_per_trial", each, each >= 1 and self.gpus % each == 0, f"a divisor of gpus, {self.gpus}", "gpus-per-trial")
        _require("trials", self.trials, self.trials >= 2, "at least 2, which are the two baselines")
        _require(
            "throughput",
            self.throughput,
            self.throughput == "predicted" or self.hardware is None,
            "predicted with --hardware: nothing is timed",
        )
        _require("seed", self.seed, 0 <= self.seed < 2**32, "in [0, 2**32)")
        _require("lease_s", self.lease_s, isfinite(self.lease_s) and self.lease_s >= 1, "at least 1 s", "lease-s")
        _require("tolerance", self.tolerance, isfinite(self.tolerance) and self.tolerance >= 0, "at least 0 points")

    @property
    def devices_per_trial(self) -> int:
        """Devices that the network of one trial is planned for."""
        return self.gpus if self.gpus_per_trial is None else self.gpus_per_trial

    def write(self, folder: RunFolder) -> None:
        """Write `config.toml`."""
        scalars = {name: value for name, value in asdict(self).items() if value is not None and name != "settings"}
        lines = [f"{name} = {_toml(value)}" for name, value in scalars.items()]
        lines += ["", "[settings]", *(f"{name} = {_toml(value)}" for name, value in self.settings.items())]
        write_text(folder.config, "\n".join(lines) + "\n")

    @classmethod
    def read(cls, folder: RunFolder) -> Options:
        """Read `config.toml`; RunNotFoundError when it is missing or damaged, or says what no option is."""
        try:
            with open(folder.config, "rb") as file:
                written = tomllib.load(file)
            _check_names(folder, written, tuple(field.name for field in fields(cls)))
            return TypeAdapter(cls).validate_python(written)
        except (OSError, ValueError, RecursionError) as error:
            raise RunNotFoundError(f"{folder.config} is unreadable ({error}); the run is damaged, start a new one") from error


def _check_names(folder: RunFolder, written: Iterable[str], known: tuple[str, ...]) -> None:
    """RunNotFoundError for a name that is no option's: what was meant by it would be a default instead."""
    for name in written:
        if name not in known:
            rule, remedy = f"must be one of {', '.join(known)}", "mend it, or use the grow that wrote it"
            raise RunNotFoundError(f"{name} is set in {folder.config}, but {rule}; {remedy}{suggestion(name, known)}")


def startup_of(trials: int) -> int:
    """Trials before the sampler's model is used, in a run with this budget at its beginning."""
    return max(4, trials // 4)


def _require(name: str, value: object, holds: bool, rule: str, option: str | None = None) -> None:
    if not holds:
        raise ConfigurationError(f"{name} is {value}, but must be {rule}; choose another with --{option or name}")


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # of scalars, JSON's are TOML's


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What preparation found, once and for all of the run.

    settings: recipe fields that are fixed. ranges, first_guesses: what is searched, and what is tried first. data: name, sha256,
    folder and samples of each split. kind: of the devices that train. device_names: those that are planned for; elsewhere: the
    machine that they are of, None if it is this one. dense_step_s: seconds that a step of the dense start network is predicted to take on
    one device, None where the profile is of another machine.
    """

    network: str
    settings: Mapping[str, object]
    ranges: Mapping[str, Mapping[str, object]]
    first_guesses: Sequence[Mapping[str, object]]
    data: Mapping[str, object]
    kind: Literal["cpu", "cuda"]
    device_names: Sequence[str]
    elsewhere: str | None = None
    dense_step_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the run is and how it ended: `run.json`.

    study_sha256: of the file of a study that was given by path. options: as they were when the run began, or when a change of them was
    last allowed. startup: trials before the sampler's model is used, which a raised budget leaves as they are; None in a run that an
    earlier version began. plan: None until the run is prepared. reference: accuracy and throughput
    (samples/s) that hypervolumes are reckoned from, fixed when trial 0 is told. study_name: of the study in the storage that several
    processes share, None where there is none.
    """

    run: str
    created_at: str
    versions: Mapping[str, str]
    study_sha256: str | None = None
    options: Mapping[str, object] | None = None
    state: RunState = "running"
    reason: str | None = None
    startup: int | None = None
    plan: Plan | None = None
    reference: tuple[float, float] | None = None
    study_name: str | None = None

    def write(self, folder: RunFolder) -> None:
        """Write `run.json`."""
        write_json(folder.record, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: RunFolder) -> RunRecord:
        """Read `run.json`; RunNotFoundError when it is missing, damaged or of another version."""
        data = read_json(folder.record)
        if data.pop("schema_version", None) != SCHEMA_VERSION:
            raise RunNotFoundError(
                f"{folder.record} is of another schema, but must be of version {SCHEMA_VERSION}; use the grow that wrote it"
            )
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            raise RunNotFoundError(f"{folder.record} is damaged at {_place(error)}; start a new run") from error


def _place(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} ({first['msg']})"
