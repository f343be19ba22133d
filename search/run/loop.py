"""The loop of a run: free slots are refilled at once, ended jobs told at once, until every trial of the budget is told."""

from __future__ import annotations

import time
from contextlib import ExitStack

import optuna

from search.errors import cause
from search.lost_files import has_network
from search.options import Options, RunRecord
from search.ownership import of_trial
from search.process import stop
from search.progress import Progress
from search.quiet import Hold, devices_of
from search.records import checked_if_valid
from search.run.ends import Ends
from search.run.jobs import Job, Jobs
from search.run.outcomes import Outcomes
from search.run.parent import Parent
from search.run.state import note
from search.run.trials import Trials
from search.slots import Slot, slots_of


class Loop:
    """Who is at which trial: what is known of the trials, how they are begun and how they end, are its rooms' matters."""

    def __init__(self, parent: Parent, options: Options, record: RunRecord, study: optuna.Study, view: Progress) -> None:
        assert record.plan is not None
        self._parent, self._progress, self._lease_s = parent, view, options.lease_s
        self._trials = Trials(parent, options, record, study)
        self._start = Jobs(parent, options, record.plan, self._trials, view)
        self._ends = Ends(parent.folder, view)
        self._outcomes = Outcomes(parent, options, self._trials, study, view)
        self._slots = slots_of(options, record.plan)
        self._jobs: list[Job] = []
        self._ended: list[int] = []  # trained, not yet told
        self._waiting: dict[Slot, Hold] = {}  # for devices that others are at, by slot
        self._silent_since: float | None = None  # when the storage did not answer, and has not since

    def run(self) -> None:
        """Work until every trial of the budget is told."""
        self._outcomes.tell_again()
        try:
            while self._patient_step():
                self._progress.tick(self._parent.folder, [job.number for job in self._jobs], len(self._trials.told()))
                self._parent.pause()
        finally:
            self._progress.rest()
            stop([job.process for job in self._jobs])
            for hold in (*self._waiting.values(), *(job.hold for job in self._jobs)):
                hold.release()

    def _patient_step(self) -> bool:
        """A step; where the storage does not answer, the same again later, for the length of a lease."""
        try:
            goes_on = self._step()
        except self._parent.ownership.outages as error:
            now = time.monotonic()
            if self._silent_since is None:
                self._silent_since = now
                self._progress.say(f"the storage does not answer, and is asked again for {self._lease_s:g} s ({cause(error)})")
            if now - self._silent_since > self._lease_s:
                raise
            return True
        self._silent_since = None
        return goes_on

    def _step(self) -> bool:
        """Tell, then spawn; False when there is nothing left to do."""
        self._trials.look()
        self._let_go()
        self._collect()
        self._find_results()
        self._tell()
        for slot in self._slots:
            if slot not in {job.slot for job in self._jobs}:
                self._refill(slot)
        return bool(self._jobs or self._ended or not self._trials.all_told())

    def _tell(self) -> None:
        """Tell what has ended and need not be timed; trial 0 first, which the others are judged by."""
        at_clock = {job.number for job in self._jobs}
        for number in list(self._ended):
            if number in at_clock or self._outcomes.untimed(number):
                continue
            if number == 0 or self._trials.lowest_accuracy() is not None:
                self._outcomes.tell(number)
                self._ended.remove(number)

    def _refill(self, slot: Slot) -> None:
        """Time on a free slot what was trained, else train there what is next; later, where others are at its devices."""
        at_clock = {job.number for job in self._jobs}
        untimed = next((number for number in self._ended if self._outcomes.untimed(number) and number not in at_clock), None)
        hold = self._hold(slot, alone=untimed is not None)
        if hold is None:
            return
        with ExitStack() as given_back:
            given_back.callback(hold.release)
            if untimed is not None:
                self._jobs.append(self._start.clock(untimed, slot, hold))
            elif (upcoming := self._trials.next(self._taken())) is not None:
                self._jobs.append(self._start.train(upcoming, slot, hold))
            else:
                return
            given_back.pop_all()  # the job's now

    def _hold(self, slot: Slot, *, alone: bool) -> Hold | None:
        """The devices of a slot; None where others are at them, for which it is waited from now on."""
        hold = self._waiting.pop(slot, None)
        if hold is None or hold.alone != alone:
            if hold is not None:
                hold.release()
            hold = Hold(devices_of([slot]), alone=alone)
        if hold.ready():
            return hold
        self._waiting[slot] = hold
        return None

    def _taken(self) -> set[int]:
        """The trials that this process is at."""
        return {job.number for job in self._jobs} | set(self._ended)

    def _collect(self) -> None:
        """See which jobs have ended, and how."""
        for job in list(self._jobs):
            code = job.process.poll()
            if code is None:
                continue
            self._jobs.remove(job)
            job.hold.release()
            if job.timing:
                self._ends.timed(job, code)
            elif self._ends.trained(job, code):
                self._ended.append(job.number)

    def _find_results(self) -> None:
        """Trials that were trained before their parent was killed, here or elsewhere."""
        for trial in self._trials.unfinished(self._taken()):
            files = self._parent.folder.trial(trial.number)
            result = files.result
            if not result.exists() or not self._trials.claim(trial.number):
                continue
            if checked_if_valid(result) is None:
                self._progress.say(f"{result} is damaged and not used; trial {trial.number} goes on from its last checkpoint")
                result.unlink()
            elif self._outcomes.untimed(trial.number) and not has_network(files):
                self._progress.say(f"trial {trial.number} has lost its network before it was timed, and is trained anew")
                result.unlink()
            else:
                self._ended.append(trial.number)

    def _let_go(self) -> None:
        """Stop what another process has taken over or told, without telling."""
        mine = self._parent.ownership.held({of_trial(number) for number in (*(job.number for job in self._jobs), *self._ended)})
        told = {trial.number for trial in self._trials.told()}
        lost = [job for job in self._jobs if of_trial(job.number) not in mine or job.number in told]
        for job in lost:
            self._progress.say(f"trial {job.number} has been taken over by another process, and is stopped here")
            note(self._parent.folder, "trial_lost", number=job.number)
            self._jobs.remove(job)
        stop([job.process for job in lost])
        for job in lost:
            job.hold.release()
        self._ended = [number for number in self._ended if of_trial(number) in mine and number not in told]
