"""How jobs ended that left no result: by their own failure, by others' hand, or because memory ran out."""

from __future__ import annotations

from search.errors import RunError, RunNotFoundError, StorageError
from search.files import write_json
from search.process import ending, last_words, out_of_memory_kills, said, was_killed, was_stopped
from search.progress import Progress
from search.run.jobs import Job, last_checkpoint
from search.run.state import note
from search.rundir import RunFolder

STOPS_IN_A_ROW = 10
"""Times that a trial's worker may be ended by others before its first or its next checkpoint; then the trial has failed."""


class Ends:
    """What becomes of trials whose jobs have ended. A worker that others ended goes on, unless that happens too often."""

    def __init__(self, folder: RunFolder, view: Progress) -> None:
        self._folder, self._progress = folder, view
        self._stops: dict[int, int] = {}  # how often a trial's worker was ended by others since its last checkpoint

    def trained(self, job: Job, code: int) -> bool:
        """Whether the trial of a worker that ended has a result now; otherwise it goes on later.

        RunNotFoundError, RunError where the worker says that no trial of this run can be trained.
        """
        files = self._folder.trial(job.number)
        for line in said(files.log, job.before.logged_bytes):
            self._progress.say(f"trial {job.number}: {line}")
        if files.result.exists():
            return True
        if code == RunNotFoundError.exit_code:
            raise RunNotFoundError(last_words(files.log))
        if code == StorageError.exit_code:
            raise RunError(last_words(files.log))
        if self._goes_on(job, code):
            return False
        # The reason goes where a worker that can still speak puts it, so that telling needs one source only.
        state = "infeasible" if ran_out_of_memory(job, code) else "failed"
        write_json(files.result, {"state": state, "failure": self._reason(job, code)})
        return True

    def timed(self, job: Job, code: int) -> None:
        """What a network was timed at is told next; where its process was ended by others, it is timed again."""
        log = self._folder.trial(job.number).log
        if code != 0 and not was_stopped(code):
            raise RunError(f"measuring trial {job.number} failed: {last_words(log)}")
        if code == 0:
            note(self._folder, "measured", timed=[job.number], tested=[])
            return
        self._stops[job.number] = self._stops.get(job.number, 0) + 1
        if self._stops[job.number] >= STOPS_IN_A_ROW:
            raise RunError(f"measuring trial {job.number}: {ending(code, log)}, {STOPS_IN_A_ROW} times")

    def _goes_on(self, job: Job, code: int) -> bool:
        """Whether the trial of a worker that was ended by others continues: always, unless memory ran out or it does not get on."""
        if not was_stopped(code) or ran_out_of_memory(job, code):
            return False
        files = self._folder.trial(job.number)
        stops = self._stops[job.number] = self._stops.get(job.number, 0) + 1 if job.before.checkpoint == last_checkpoint(files) else 1
        if stops >= STOPS_IN_A_ROW:
            return False
        self._progress.say(f"trial {job.number}: {ending(code, files.log)}, and goes on from its last checkpoint")
        note(self._folder, "trial_interrupted", number=job.number)
        return True

    def _reason(self, job: Job, code: int) -> str:
        reason = ending(code, self._folder.trial(job.number).log)
        if not was_stopped(code):
            return reason
        if ran_out_of_memory(job, code):
            return f"{reason} because memory ran out"
        return f"{reason}, {STOPS_IN_A_ROW} times without a new checkpoint"


def ran_out_of_memory(job: Job, code: int) -> bool:
    """Whether the system ended a worker to have memory again."""
    return was_killed(code) and out_of_memory_kills() > job.before.out_of_memory_kills
