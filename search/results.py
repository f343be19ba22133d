"""The JSON documents of a run and of a trial: what `--json` prints, rebuilt from the files at any time, without owning the run.

Names and types are those of `SCHEMA_VERSION`; a version may gain fields, but loses and redefines none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from search.errors import ConfigurationError
from search.files import JsonObject, read_lines
from search.hypervolume import Point, hypervolume, hypervolumes
from search.options import Options, RunRecord, RunState
from search.owner import owner
from search.records import checked_if_valid
from search.rundir import RunFolder, TrialFolder

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SCHEMA_VERSION = 1

Word: TypeAlias = Literal["predicted", "simulated", "measured"]
TrialState: TypeAlias = Literal["complete", "infeasible", "failed", "stopped_early", "running"]


class Throughput(TypedDict):
    """Training samples per second, by the cost model (simulated: of a machine that is elsewhere) and by the clock."""

    predicted_samples_per_s: float | None
    simulated_samples_per_s: float | None
    measured_samples_per_s: float | None


class TrialDocument(TypedDict):
    """One trial. Density and connections are of the whole network, all layers counted.

    beyond: why the throughput by the cost model may be worse than the profile's calibration says, in words. failure: why the trial has no
    figures, where it ended without. broken: the constraints that make it infeasible, and by how much, in words. lost: names of its files
    that are missing or damaged though it has ended; accuracy and throughput are then what the journal was told.
    """

    number: int
    state: TrialState
    role: str
    accuracy: float | None
    test_accuracy: float | None
    throughput: Throughput
    beyond: list[str]
    density: float | None
    connections: int | None
    units: dict[str, int]
    devices_used: int
    strategy: str
    crossing_units: int
    communication_volume: int
    bytes_per_step: int
    grown: int
    pruned: int
    recipe: JsonObject
    failure: str | None
    broken: list[str]
    lost: list[str]


class CourseDocument(TrialDocument):
    """One trial by itself, with its course. course: lines of metrics; events: growth and pruning, see `grow.history.Event`."""

    schema_version: int
    run: str
    course: list[JsonObject]
    events: list[JsonObject]


class BestDocument(TrialDocument):
    """One trial by itself, with the paths of what it left: weights and topology, and its recipe."""

    schema_version: int
    run: str
    checkpoint: str
    recipe_file: str


class ReferenceDocument(TypedDict):
    """What hypervolumes are reckoned from."""

    accuracy: float
    samples_per_s: float


class CoveredDocument(TypedDict):
    """The hypervolume of a run once a trial was told, samples/s."""

    trial: int
    hypervolume: float


class DataDocument(TypedDict):
    """The data that the run uses, and the samples of each split."""

    name: str
    sha256: str
    train: int
    validation: int
    test: int


class DevicesDocument(TypedDict):
    """The devices that were asked for; kind (of those that train) None until the run is prepared. elsewhere: the machine planned for."""

    requested: int
    kind: str | None
    names: list[str]
    elsewhere: str | None


class RunDocument(TypedDict):
    """A run. ``data`` is None until the run is prepared.

    reason: why it failed. objective: which throughput it maximises. reference, hypervolume: None until trial 0 is told; hypervolume in
    samples/s, of the feasible trials. hypervolumes: how it grew, in the order in which trials were told.
    """

    schema_version: int
    run: str
    study: str
    state: RunState
    reason: str | None
    objective: Word
    data: DataDocument | None
    devices: DevicesDocument
    trials: list[TrialDocument]
    pareto: list[int]
    reference: ReferenceDocument | None
    hypervolume: float | None
    hypervolumes: list[CoveredDocument]


def document(folder: RunFolder) -> RunDocument:
    """The document of a run; RunNotFoundError when its files are damaged."""
    from search.storage import pareto, read_trials

    record, options, trials = RunRecord.read(folder), Options.read(folder), read_trials(folder.journal)
    plan, reference = record.plan, _reference(record, options, trials)
    objective: Word = "measured" if options.throughput == "measured" else "simulated" if plan and plan.elsewhere else "predicted"
    return {
        "schema_version": SCHEMA_VERSION,
        "run": record.run,
        "study": options.study,
        "state": state_of(folder, record),
        "reason": record.reason,
        "objective": objective,
        "data": None if plan is None else _data(plan.data),
        "devices": {
            "requested": options.gpus,
            "kind": None if plan is None else plan.kind,
            "names": [] if plan is None else list(plan.device_names),
            "elsewhere": None if plan is None else plan.elsewhere,
        },
        "trials": [_trial(trial, folder.trial(trial.number), objective) for trial in trials],
        "pareto": pareto(trials),
        "reference": None if reference is None else {"accuracy": reference[0], "samples_per_s": reference[1]},
        "hypervolume": None if reference is None else hypervolume(feasible_points(trials), reference),
        "hypervolumes": [] if reference is None else covered(trials, reference),
    }


def course_document(folder: RunFolder, found: RunDocument, number: int) -> CourseDocument:
    """The document of one trial out of a run's, with its course."""
    files = folder.trial(number)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found["run"],
        **found["trials"][number],
        "course": read_lines(files.metrics),
        "events": read_lines(files.history),
    }


def best_document(folder: RunFolder, found: RunDocument, trial: TrialDocument) -> BestDocument:
    """The document of one trial out of a run's, with what is needed to use it."""
    files = folder.trial(trial["number"])
    return {
        "schema_version": SCHEMA_VERSION,
        "run": found["run"],
        **trial,
        "checkpoint": str(files.checkpoint),
        "recipe_file": str(files.recipe),
    }


def _reference(record: RunRecord, options: Options, trials: Sequence[FrozenTrial]) -> Point | None:
    """What the run has fixed; in a run that an earlier version began, what it would have been."""
    if record.reference is not None or not trials or not trials[0].values:
        return record.reference
    return (trials[0].values[0] - options.tolerance / 100, 0.0)


def feasible_points(trials: Iterable[FrozenTrial]) -> list[Point]:
    """Accuracy and throughput, as told to the study, of the trials within the tolerance."""
    from search.storage import feasible

    return [(trial.values[0], trial.values[1]) for trial in trials if feasible(trial)]


def covered(trials: Sequence[FrozenTrial], reference: Point) -> list[CoveredDocument]:
    """The hypervolume after each trial that was told, in the order of telling."""
    from search.storage import feasible

    told = sorted((trial for trial in trials if trial.datetime_complete is not None), key=lambda trial: str(trial.datetime_complete))
    points = [(trial.values[0], trial.values[1]) if feasible(trial) else None for trial in told]
    areas = hypervolumes(points, reference)
    return [{"trial": trial.number, "hypervolume": area} for trial, area in zip(told, areas, strict=True)]


def state_of(folder: RunFolder, record: RunRecord) -> RunState:
    """The state of a run; one that nobody works on any more was interrupted."""
    process = owner(folder)
    if record.state == "running" and (process is None or not process.alive):
        return "interrupted"
    return record.state


def _data(data: Mapping[str, Any]) -> DataDocument:
    return {
        "name": data["name"],
        "sha256": data["sha256"],
        "train": data["train"],
        "validation": data["validation"],
        "test": data["test"],
    }


def _trial(trial: FrozenTrial, files: TrialFolder, objective: Word) -> TrialDocument:
    # Read from files that a live run may be writing: what is not there yet is None, or 0 where the schema knows no None.
    from search.lost_files import lost

    recipe = checked_if_valid(files.recipe) or {}
    measured: dict[str, Any] = checked_if_valid(files.measured) or {}
    test: dict[str, Any] = checked_if_valid(files.test) or {}
    result: dict[str, Any] = checked_if_valid(files.result) or {}
    told = dict(zip(("accuracy", "throughput"), trial.values or (), strict=False))
    if objective == "measured":
        measured = {"samples_per_s": told.get("throughput")} | measured
    elif not result and told:
        result = {"word": objective, "predicted_samples_per_s": told["throughput"]}
    simulated = result.get("word") == "simulated"
    return {
        "number": trial.number,
        "state": trial_state(trial),
        "role": str(trial.user_attrs.get("role", "search")),
        "accuracy": result.get("accuracy", told.get("accuracy")),
        "test_accuracy": test.get("accuracy"),
        "throughput": {
            "predicted_samples_per_s": None if simulated else result.get("predicted_samples_per_s"),
            "simulated_samples_per_s": result.get("predicted_samples_per_s") if simulated else None,
            "measured_samples_per_s": measured.get("samples_per_s"),
        },
        "beyond": result.get("beyond", []),
        "density": result.get("density"),
        "connections": result.get("connections"),
        "units": result.get("units", {}),
        "devices_used": int(str(recipe.get("devices", 1))),
        "strategy": str(recipe.get("strategy", "single")),
        "crossing_units": result.get("crossing_units", 0),
        "communication_volume": result.get("communication_volume", 0),
        "bytes_per_step": result.get("bytes_per_step", 0),
        "grown": result.get("grown", 0),
        "pruned": result.get("pruned", 0),
        "recipe": recipe,
        "failure": trial.user_attrs.get("failure"),
        "broken": broken_in_words(trial, result),
        "lost": lost(trial, files),
    }


def trial_state(trial: FrozenTrial) -> TrialState:
    """The state of a trial."""
    from optuna.trial import TrialState as Optuna

    from search.storage import MEMORY, broken, feasible

    match trial.state:
        case Optuna.COMPLETE:
            return "complete" if feasible(trial) else "infeasible"
        case Optuna.FAIL:
            return "failed"
        case Optuna.PRUNED:
            return "infeasible" if MEMORY in broken(trial) else "stopped_early"
        case _:
            return "running"


def broken_in_words(trial: FrozenTrial, result: Mapping[str, Any]) -> list[str]:
    """What makes an infeasible trial so, and by how much; nothing of other trials. result: the trial's, as far as it is there."""
    from search.storage import MEMORY, TOLERANCE, broken

    found = {name: trial.constraints[name] for name in broken(trial)}
    if trial.values is None:
        return [f"{MEMORY}, by how much is not known"] if MEMORY in found else []
    words = []
    for name, excess in found.items():
        by = f"{100 * excess:.3g}"
        if name == TOLERANCE:
            accuracy = trial.values[0]
            lowest = f"{100 * (accuracy + excess):.2f} %"
            words.append(f"accuracy {100 * accuracy:.2f} % is {by} points below the lowest one within the tolerance, {lowest}")
        elif name == MEMORY and result.keys() >= {"memory_bytes", "device_memory_bytes"}:
            needed, there = (f"{result[key] / 2**30:.3g} GiB" for key in ("memory_bytes", "device_memory_bytes"))
            words.append(f"memory {needed}, as predicted, is {by} % more than the device's {there}")
        else:
            words.append(f"{name}, by {by} %")
    return words


def reason_of(trial: TrialDocument) -> str:
    """Why a trial is not one of those that the front is made of; nothing of the others."""
    return trial["failure"] or "; ".join(trial["broken"])


def check_trial(found: RunDocument, number: int) -> None:
    """ConfigurationError where a run has no trial of that number."""
    count, run = len(found["trials"]), found["run"]
    if count == 0:
        raise ConfigurationError(f"trial is {number}, but run {run!r} has none yet; wait for its first one")
    if not 0 <= number < count:
        raise ConfigurationError(f"trial is {number}, but must be in 0..{count - 1}, the trials of run {run!r} so far; choose one of them")


def fastest(found: RunDocument) -> TrialDocument | None:
    """The member of the front with the highest throughput, by the clock where all members were timed."""
    members = [trial for trial in found["trials"] if trial["number"] in found["pareto"]]
    by_clock = all(trial["throughput"]["measured_samples_per_s"] is not None for trial in members)

    def throughput(trial: TrialDocument) -> float:
        rates = trial["throughput"]
        return (
            rates["measured_samples_per_s"] if by_clock else rates["predicted_samples_per_s"] or rates["simulated_samples_per_s"]
        ) or 0.0

    return max(members, key=throughput, default=None)
