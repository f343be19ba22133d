"""Attaching to a run that works: what its owner sees, without being its owner. Nothing is written, and no lock is taken."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from search import progress
from search.errors import RunError
from search.files import read_json_if_valid
from search.options import Options, RunRecord, RunState
from search.records import checked_if_valid
from search.results import state_of, trial_state
from search.rundir import RunFolder
from search.storage import FAILURE, ROLE, broken, read_trials

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LOOK_EVERY_S = 1.0


def watch(folder: RunFolder, resume: str) -> None:
    """Show a run until it ends. RunError, with the command that goes on, when it ends otherwise than complete."""
    seen = _Seen(folder)
    with progress.open_progress(Options.read(folder).trials) as view:
        while True:
            record = RunRecord.read(folder)
            state = state_of(folder, record)  # before the trials: what is told after that is seen at the next look
            at_work = seen.news(view)
            if state != "running":
                break
            view.tick(folder, at_work, seen.told)
            time.sleep(LOOK_EVERY_S)
    _conclude(record, state, resume)


def _conclude(record: RunRecord, state: RunState, resume: str) -> None:
    if state == "failed":
        raise RunError(f"run {record.run!r} failed: {record.reason}")
    if state == "interrupted":
        raise RunError(f"run {record.run!r} was interrupted; continue with: {resume}")


class _Seen:
    """Which trials were seen to begin and to end."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    @property
    def told(self) -> int:
        """Trials that have ended."""
        return len(self._ended)

    def news(self, view: progress.Progress) -> list[int]:
        """Say which trials have begun and ended since the last look; those at work now."""
        trials = read_trials(self._folder.journal)
        for trial in trials:
            number, recipe = trial.number, read_json_if_valid(self._folder.trial(trial.number).recipe)
            if number not in self._begun and recipe is not None:
                self._begun.add(number)
                view.say(progress.started(number, str(trial.user_attrs.get(ROLE, "search")), recipe))
            if number not in self._ended and trial.state.is_finished():
                self._ended.add(number)
                view.say(self._ending(trial))
        return [number for number in sorted(self._begun) if number not in self._ended]

    def _ending(self, trial: FrozenTrial) -> str:
        if trial.values is None:
            return progress.ended(trial.number, trial_state(trial), str(trial.user_attrs.get(FAILURE, trial.state.name.lower())))
        result = checked_if_valid(self._folder.trial(trial.number).result) or {}
        return progress.finished(trial.number, result, broken(trial))
