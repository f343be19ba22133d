"""The trials of a run as the study knew them when it was last looked at, and which is to be trained next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial

from search.baselines import DATA_PARALLEL, baseline, role_of
from search.errors import RunError
from search.options import Options, RunRecord, startup_of
from search.ownership import of_trial
from search.recipe import Recipe, recipe
from search.run.parent import Parent
from search.space import Range, from_json
from search.storage import FAILURE, Proposal, add_running, ask, seed_of, tell_drawn_twice, values_of


def lowest_accuracy(trials: Sequence[FrozenTrial], tolerance: float) -> float | None:
    """The accuracy within a tolerance (points) of trial 0's, None until that is told. RunError where it has none."""
    if not trials or not trials[0].state.is_finished():
        return None
    dense = trials[0]
    if dense.values is None:
        reason = dense.user_attrs.get(FAILURE)
        raise RunError(f"trial 0, the dense baseline, failed: {reason}; the others cannot be judged without it, start a new run")
    return float(dense.values[0]) - tolerance / 100


class Trials:
    """The trials of a run. New ones are drawn and entered here, and here alone."""

    def __init__(self, parent: Parent, options: Options, record: RunRecord, study: optuna.Study) -> None:
        assert record.plan is not None
        self._folder, self._ownership, self._study = parent.folder, parent.ownership, study
        self._options, self._record, self._plan = options, record, record.plan
        self._ranges: Mapping[str, Range] = from_json(record.plan.ranges)
        self._seen: list[FrozenTrial] = []

    # What is known

    def look(self) -> None:
        """See what has been told and entered, here and elsewhere."""
        self._seen = self._study.get_trials(deepcopy=False)

    def changed(self) -> None:
        """What this process has just told or entered is to be seen, here and by those who look at the run."""
        self._ownership.changed()
        self.look()

    def known(self) -> list[FrozenTrial]:
        """All trials, by their numbers."""
        return self._seen

    def told(self) -> list[FrozenTrial]:
        """Those that have ended."""
        return [trial for trial in self._seen if trial.state.is_finished()]

    def unfinished(self, taken: Collection[int]) -> list[FrozenTrial]:
        """Those that have not ended, but for those that this process is at."""
        return [trial for trial in self._seen if not trial.state.is_finished() and trial.number not in taken]

    def all_told(self) -> bool:
        """Whether the budget is met."""
        return len(self.told()) >= max(self._budget(), len(self._seen))

    def _budget(self) -> int:
        """The trials of the run, which another process may have added to."""
        return Options.read(self._folder).trials if self._ownership.shared else self._options.trials

    def lowest_accuracy(self) -> float | None:
        """The accuracy that a trial must reach, None until trial 0 is told."""
        return lowest_accuracy(self._seen, self._options.tolerance)

    # Which is next

    def claim(self, number: int) -> bool:
        """Take a trial, unless another process has it; whether this one has it now."""
        return self._ownership.claim(of_trial(number))

    def next(self, taken: Collection[int]) -> int | None:
        """An unfinished trial that nobody is at, else a new one, else nothing. taken: those that this process is at."""
        for trial in self.unfinished(taken):
            if self.claim(trial.number):
                return trial.number
        number = len(self._seen)
        if number >= self._budget() or (number > DATA_PARALLEL and self.lowest_accuracy() is None):
            return None  # what is feasible is known only when trial 0 is told
        if not self.claim(number):
            return None  # another process is drawing it
        self.look()  # one that has died may have entered it
        return number if len(self._seen) > number else self._enter(number)

    def _enter(self, number: int) -> int | None:
        entered = add_running(self._study, role_of(number), self._proposal(number))
        if entered != number:  # this process slept for longer than its lease in between
            tell_drawn_twice(self._study, entered, number)
        self.changed()
        return number if entered == number else None

    def _proposal(self, number: int) -> Proposal | None:
        """The parameters of a new trial; None for a baseline."""
        if role_of(number) != "search":
            return None
        guesses = self._plan.first_guesses
        position = number - DATA_PARALLEL - 1
        return ask(
            self._seen,
            self._ranges,
            self._plan.settings,
            seed=seed_of(self._options.seed, number),
            startup=self._record.startup or startup_of(self._options.trials),
            choice=self._options.sampler,
            guess=guesses[position] if position < len(guesses) else None,
        )

    def recipe(self, number: int) -> Recipe:
        """What decides a trial: it follows from what the study knows of it."""
        role = role_of(number)
        if role == "search":
            values = values_of(self._seen[number].params, self._ranges, self._plan.settings)
        else:
            values = dict(self._plan.settings) | baseline(role, self._options.devices_per_trial)
        data = self._plan.data
        return recipe(
            values
            | {
                "study": self._options.study,
                "study_sha256": self._record.study_sha256,
                "network": self._plan.network,
                "data_dir": data["folder"],
                "data_sha256": data["sha256"],
                "number": number,
                "role": role,
                "seed": self._options.seed,
                "device": self._plan.kind,
            }
        )
