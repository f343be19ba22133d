"""The run's Optuna study: a journal that a kill cannot spoil, trials that enter it whole, and a sampler that never repeats itself.

Objectives, both maximised: validation accuracy (a fraction) and throughput (samples/s). Constraints: trial 0's accuracy, less the
tolerance, less the trial's own; and the share of memory that is needed beyond what a device has. Feasible means <= 0.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from search.errors import RunNotFoundError
from search.files import cut_torn_line
from search.options import SamplerChoice
from search.recipe import TrialRole
from search.samplers import remembered, sampler
from search.space import Choice, Range, suggest

optuna.logging.set_verbosity(optuna.logging.WARNING)

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MAXIMIZE)
METRICS = ("validation accuracy", "throughput (samples/s)")
TOLERANCE = "accuracy loss beyond the tolerance"
MEMORY = "memory beyond the device's"
FAILURE = "failure"
ROLE = "role"
_TWICE = "drawn as trial"

REDRAWS = 10
"""Times that parameters are drawn anew where a trial has them already; where a search space holds too few others, it has them again."""


@contextmanager
def _experimental() -> Iterator[None]:
    """Do without Optuna's warning that a part of it may change: the version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def repair(journal: Path) -> int:
    """Make a journal readable again after a kill; the caller holds the run's lock. Returns the bytes of the torn line that was lost.

    RunNotFoundError where another line is damaged. Optuna appends to what is there, so a torn line would spoil the next one, and with it
    the journal, for good. A dead owner's lock file would make the next writer wait.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    lost = cut_torn_line(journal)
    lines = journal.read_bytes().splitlines() if journal.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunNotFoundError(f"{journal} is damaged in line {number} of {len(lines)}") from error
    return lost


def open_study(journal: Path, name: str) -> optuna.Study:
    """The study of a repaired journal, made when there is none."""
    with _foreign(journal):
        storage = JournalStorage(JournalFileBackend(str(journal)))
    return made_study(storage, name)


def made_study(storage: BaseStorage, name: str) -> optuna.Study:
    """The study of that name in a storage, made when there is none."""
    study = optuna.create_study(
        storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True, sampler=RandomSampler()
    )  # a sampler that is never asked: see `ask`
    if study.metric_names is None:
        with _experimental():
            study.set_metric_names(list(METRICS))
    return study


def read_trials(journal: Path) -> list[FrozenTrial]:
    """All trials of a journal, also while another process writes it; none when there is no journal yet."""
    if not journal.exists():
        return []
    with _foreign(journal):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        studies = storage.get_all_studies()
        return storage.get_all_trials(studies[0]._study_id) if studies else []


@contextmanager
def _foreign(journal: Path) -> Iterator[None]:
    """Optuna checks nothing of what a line says; whatever it stumbles over makes the journal unreadable."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError) as error:
        raise RunNotFoundError(f"{journal} is unreadable ({error!r})") from error


@dataclass(frozen=True)
class Proposal:
    """Parameters of a trial to come, with what they were drawn from, and what the sampler will have to know of it later."""

    params: Mapping[str, object]
    distributions: Mapping[str, BaseDistribution]
    remembered: Mapping[str, object] = field(default_factory=dict)


def seed_of(run_seed: int, number: int) -> int:
    """Seed of the sampler for one trial, so that no restart replays a draw."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{number}".encode()).digest()[:4], "little")


def ask(
    trials: Sequence[FrozenTrial],
    ranges: Mapping[str, Range],
    settings: Mapping[str, object],
    *,
    seed: int,
    startup: int,
    choice: SamplerChoice = "tpe",
    guess: Mapping[str, object] | None = None,
) -> Proposal:
    """Draw all parameters of the next trial from what ``trials`` have shown, without touching their storage.

    The sampler is built anew, so that what it draws depends on the arguments alone. startup: trials before the model is
    used. guess: values to take as they are; what it leaves open is drawn. Baselines, which have no parameters, are left out: the
    sampler models only parameters that trials share. What a trial has drawn already, as NSGA-II's children often do, is drawn anew while
    that helps: the same recipe gives the same network.
    """
    known = [trial.params for trial in trials]
    drawn = _drawn(trials, ranges, settings, seed, startup, choice, guess)
    for attempt in range(1, REDRAWS + 1):
        if drawn.params not in known:
            break
        drawn = _drawn(trials, ranges, settings, seed_of(seed, attempt), startup, choice, None)
    return drawn


def _drawn(
    trials: Sequence[FrozenTrial],
    ranges: Mapping[str, Range],
    settings: Mapping[str, object],
    seed: int,
    startup: int,
    choice: SamplerChoice,
    guess: Mapping[str, object] | None,
) -> Proposal:
    copy = optuna.create_study(storage=InMemoryStorage(), directions=DIRECTIONS, sampler=sampler(choice, seed, startup))
    copy.add_trials([trial for trial in trials if trial.params and _drawn_alike(trial, ranges)])
    if guess:
        copy.enqueue_trial(dict(guess))
    trial = copy.ask()
    suggest(trial, ranges, settings)
    drawn = copy.trials[trial.number]
    return Proposal(drawn.params, drawn.distributions, remembered(drawn))


def _drawn_alike(trial: FrozenTrial, ranges: Mapping[str, Range]) -> bool:
    """Whether the choices that a trial was drawn from are still the same: Optuna models no others, where a study was changed."""
    choices = {name: values for name, values in ranges.items() if isinstance(values, Choice)}
    drawn = {name: found.choices for name, found in trial.distributions.items() if isinstance(found, CategoricalDistribution)}
    return all(name not in choices or choices[name].values == values for name, values in drawn.items())


def values_of(params: Mapping[str, object], ranges: Mapping[str, Range], settings: Mapping[str, object]) -> dict[str, object]:
    """The recipe fields that the parameters of a trial stand for."""
    return suggest(FixedTrial(dict(params)), ranges, settings)


def add_running(study: optuna.Study, role: TrialRole, proposal: Proposal | None = None) -> int:
    """Enter a trial at once, so that a kill leaves a whole trial or none. Returns its number, which the storage alone decides."""
    entered = create_trial(
        state=TrialState.RUNNING,
        params=dict(proposal.params) if proposal else {},
        distributions=dict(proposal.distributions) if proposal else {},
        user_attrs={ROLE: role},
        system_attrs=dict(proposal.remembered) if proposal else {},
    )
    storage = study._storage  # `Study.add_trial` does the same, but does not say the number
    return storage.get_trial(storage.create_new_trial(study._study_id, template_trial=entered)).number


def entry_of(trial: FrozenTrial) -> dict[str, object]:
    """What a trial entered the journal with, as plain data."""
    return {
        "role": trial.user_attrs.get(ROLE),
        "params": trial.params,
        "distributions": {name: distribution_to_json(found) for name, found in trial.distributions.items()},
        "remembered": dict(remembered(trial)),
    }


def add_entry(study: optuna.Study, entry: Mapping[str, Any]) -> int:
    """Enter a trial as another journal had it. Returns its number."""
    distributions = {name: json_to_distribution(text) for name, text in entry["distributions"].items()}
    return add_running(study, entry["role"], Proposal(entry["params"], distributions, entry["remembered"]))


def tell_complete(
    study: optuna.Study, number: int, accuracy: float, throughput: float, lowest_accuracy: float, memory: float | None = None
) -> None:
    """Enter the outcome of a trial. memory: predicted, as a share of what a device has, None where that is not known."""
    _constrain(study, number, {TOLERANCE: lowest_accuracy - accuracy} | ({} if memory is None else {MEMORY: memory - 1}))
    study.tell(number, [accuracy, throughput])


def tell_infeasible(study: optuna.Study, number: int, reason: str) -> None:
    """Enter that a trial ran out of memory: a region to stay away from, with no values, and no failure."""
    _constrain(study, number, {MEMORY: 1.0})  # how much was wanted is not known, but as good as all accuracy is worth less
    _attribute(study, number, FAILURE, reason)
    study.tell(number, state=TrialState.PRUNED)


def _constrain(study: optuna.Study, number: int, constraints: Mapping[str, float]) -> None:
    """Constraints go in before the outcome, so that a kill in between leaves a trial that can be told again."""
    trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    for name, value in constraints.items():
        if name not in trial.constraints:
            trial.set_constraint(name, value)


def _attribute(study: optuna.Study, number: int, name: str, value: object) -> None:
    optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id).set_user_attr(name, value)


def tell_stopped_early(study: optuna.Study, number: int, reason: str, shortfall: float | None = None) -> None:
    """Enter that a trial fell behind others and was not trained to its end; it has no values.

    shortfall: accuracy that it lacked by the best of the courses that it was judged by, None where that is not known. Without it, a
    sampler would take what was hopeless for feasible, and draw alike where few trials are.
    """
    if shortfall is not None:
        _constrain(study, number, {TOLERANCE: shortfall})
    _attribute(study, number, FAILURE, reason)
    study.tell(number, state=TrialState.PRUNED)


def tell_failed(study: optuna.Study, number: int, reason: str) -> None:
    """Enter that a trial failed, and why."""
    _attribute(study, number, FAILURE, reason)
    study.tell(number, state=TrialState.FAIL)


def tell_drawn_twice(study: optuna.Study, entered: int, number: int) -> None:
    """Enter that a trial is one that another process has entered as ``number``, and is not tried."""
    tell_failed(study, entered, f"{_TWICE} {number}, which another process has entered")


def drawn_twice(trial: FrozenTrial) -> bool:
    """Whether a trial failed for no other reason than that: nothing was trained."""
    return str(trial.user_attrs.get(FAILURE, "")).startswith(_TWICE)


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial is complete and breaks no constraint."""
    return trial.state == TrialState.COMPLETE and not broken(trial)


def broken(trial: FrozenTrial) -> list[str]:
    """The constraints that a trial breaks."""
    return [name for name, value in trial.constraints.items() if value > 0]


def front(points: Iterable[tuple[int, float, float]]) -> list[int]:
    """Numbers of the points (number, accuracy, throughput) that no other point beats in one and equals in the other or beats too.

    >>> front([(0, 0.9, 10.0), (1, 0.8, 20.0), (2, 0.8, 15.0)])
    [0, 1]
    """
    points = list(points)
    return [number for number, *mine in points if not any(_dominates(other, mine) for _, *other in points)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def pareto(trials: Iterable[FrozenTrial]) -> list[int]:
    """Numbers of the feasible trials that no other feasible one dominates."""
    return front((trial.number, trial.values[0], trial.values[1]) for trial in trials if feasible(trial))
