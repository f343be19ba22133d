"""The outcomes of trials: how they ended is told to the study, to the run's events and to the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile

import optuna
from optuna.trial import FrozenTrial, TrialState

from search import progress
from search.baselines import DATA_PARALLEL, DENSE
from search.errors import RunError
from search.files import number_in, read_json, read_lines, write_json
from search.hypervolume import hypervolume
from search.options import Options, RunRecord
from search.ownership import exclusively, of_trial
from search.progress import Progress
from search.records import checked, checked_if_valid
from search.restore import told
from search.results import feasible_points
from search.run.parent import Parent
from search.run.state import note
from search.run.trials import Trials
from search.rundir import RunFolder
from search.storage import FAILURE, broken, drawn_twice, tell_complete, tell_failed, tell_infeasible, tell_stopped_early

FAILURES_IN_A_ROW = 5
"""Search trials that may fail one after the other before the run is given up; whoever resumes it then tries as many again."""

GIVEN_UP = "given_up"
"""The event of that."""


class Outcomes:
    """What tells them. All that it tells stands in the files of the trials."""

    def __init__(self, parent: Parent, options: Options, trials: Trials, study: optuna.Study, view: Progress) -> None:
        self._folder, self._ownership, self._progress = parent.folder, parent.ownership, view
        self._options, self._trials, self._study = options, trials, study
        self._given_up_on = told_before_given_up(parent.folder)

    def tell_again(self) -> None:
        """Tell a journal that was made anew what the one before was told."""
        self._trials.look()
        trials = self._trials.known()
        if self._ownership.shared or any(trial.state.is_finished() for trial in trials):
            return
        for number in told(self._folder):
            if number < len(trials):
                self._enter(number, checked(self._folder.trial(number).result))
                self._trials.look()

    def untimed(self, number: int) -> bool:
        """Whether a trained trial has yet to be timed before it can be told."""
        if self._options.throughput == "predicted":
            return False
        files = self._folder.trial(number)
        return checked_if_valid(files.measured) is None and checked(files.result)["state"] == "complete"

    def tell(self, number: int) -> None:
        """Tell the outcome of a trial, unless it has become another process's to tell. RunError where the run cannot go on after it."""
        if not self._ownership.held({of_trial(number)}):
            return
        result = checked(self._folder.trial(number).result)
        try:
            self._enter(number, result)
        except (ValueError, RuntimeError):  # Optuna's for a trial that has ended
            self._trials.look()
            if not self._trials.known()[number].state.is_finished():
                raise
            self._progress.say(f"trial {number} has been told by another process already")
            return
        self._trials.changed()
        note(self._folder, "trial_told", number=number, state=result["state"], hypervolume=self._hypervolume())
        self._say(number, result)
        self._check_usable(number, result)

    def _say(self, number: int, result: Mapping[str, object]) -> None:
        if result["state"] == "complete":
            self._progress.say(progress.finished(number, result, broken(self._trials.known()[number])))
        else:
            self._progress.say(progress.ended(number, str(result["state"]), str(result["failure"])))

    def _check_usable(self, number: int, result: Mapping[str, object]) -> None:
        """RunError where the run cannot go on after this outcome."""
        if number == DENSE:
            self._trials.lowest_accuracy()
        if number > DATA_PARALLEL and result["state"] == "failed":
            reasons = failures_in_a_row(trial for trial in self._trials.told() if trial.number not in self._given_up_on)
            if len(reasons) >= FAILURES_IN_A_ROW:
                note(self._folder, GIVEN_UP, failures=len(reasons))
                raise RunError(f"{len(reasons)} trials failed one after the other, the first one: {reasons[0]}")

    def _enter(self, number: int, result: Mapping[str, object]) -> None:
        """Enter how a trial ended into the study."""
        match result["state"]:
            case "failed":
                tell_failed(self._study, number, str(result["failure"]))
            case "infeasible":
                tell_infeasible(self._study, number, str(result["failure"]))
            case "stopped_early":
                tell_stopped_early(self._study, number, str(result["failure"]), self._shortfall(result))
            case _:
                accuracy = number_in(result, "accuracy")
                lowest = accuracy - self._options.tolerance / 100 if number == DENSE else self._trials.lowest_accuracy()
                assert lowest is not None
                if number == DENSE:
                    self._fix_reference(lowest)
                tell_complete(self._study, number, accuracy, self._throughput(number, result), lowest, _memory(result))

    def _shortfall(self, result: Mapping[str, object]) -> float | None:
        """Accuracy that a trial which ended early would have lacked; None in a result that an earlier version wrote."""
        lowest = self._trials.lowest_accuracy()
        return None if lowest is None or "expected_accuracy" not in result else lowest - number_in(result, "expected_accuracy")

    def _throughput(self, number: int, result: Mapping[str, object]) -> float:
        if self._options.throughput == "predicted":
            return number_in(result, "predicted_samples_per_s")
        return number_in(checked(self._folder.trial(number).measured), "samples_per_s")

    def _hypervolume(self) -> float | None:
        """What the trials told so far cover, samples/s; None before trial 0."""
        reference = RunRecord.read(self._folder).reference
        return None if reference is None else hypervolume(feasible_points(self._trials.known()), reference)

    def _fix_reference(self, lowest_accuracy: float) -> None:
        """Hypervolumes are reckoned from the lowest accuracy within the tolerance and from no throughput, whatever the run becomes."""
        with exclusively(self._folder):
            record = read_json(self._folder.record)
            if record.get("reference") is None:
                write_json(self._folder.record, {**record, "reference": [lowest_accuracy, 0.0]})


def told_before_given_up(folder: RunFolder) -> set[int]:
    """The trials that were told before a run was last given up; none of one that was only interrupted, whose failures count on."""
    events = read_lines(folder.events)
    last = max((place for place, line in enumerate(events) if line.get("event") == GIVEN_UP), default=0)
    return {number for line in events[:last] if line.get("event") == "trial_told" and isinstance(number := line.get("number"), int)}


def failures_in_a_row(told: Iterable[FrozenTrial]) -> list[str]:
    """Why the search trials failed that ended since one did not fail, in the order in which they ended, by whatever process.

    One that ended early or ran out of memory did not fail; one that was drawn twice was not tried.
    """
    tried = (trial for trial in told if trial.number > DATA_PARALLEL and not drawn_twice(trial))
    ended = sorted(tried, key=lambda trial: (str(trial.datetime_complete), trial.number), reverse=True)
    failed = takewhile(lambda trial: trial.state == TrialState.FAIL, ended)
    return [str(trial.user_attrs.get(FAILURE)) for trial in failed][::-1]


def _memory(result: Mapping[str, object]) -> float | None:
    """The predicted share of a device's memory; None in a result that an earlier version wrote."""
    return number_in(result, "memory_bytes") / number_in(result, "device_memory_bytes") if "memory_bytes" in result else None
