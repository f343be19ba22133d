"""A run from its beginning to its end, or from where it was left. The parent asks the sampler, spawns workers, and tells the study.

    create the folder -> prepare (child: data, network, profile) -> trials (children, one a slot) -> measure (child) -> document

    start, resume   here         what is checked and written before the work begins
    Parent          parent.py    the process that works, its right to, and what it works with
    state           state.py     what the run's own files say of it
    Loop            loop.py      the loop over the trials
    Trials          trials.py    what the study knows of them, and which is next
    Job             jobs.py      a process at work on one; ends.py: how it ended
    Outcomes        outcomes.py  how trials ended, told to the study and to the user
    close           closing.py   baselines and front by the clock, test accuracy

Every step leaves files from which the next can start, so that a run that was killed goes on where it was. The parent never needs torch,
and the optimizer's library only once the run is prepared.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from search.changes import accept, changes, record_code, versions
from search.errors import ChildError, ConfigurationError
from search.files import read_lines
from search.options import Options, RunRecord, startup_of
from search.ownership import exclusively
from search.process import wait
from search.progress import open_progress
from search.run.parent import Parent, at_work, owned
from search.run.state import note, now
from search.rundir import RunFolder, create_run_folder, missing_folders, removed_on_error
from search.storage_url import StorageUrl
from search.terminal import printable, say

if TYPE_CHECKING:
    from hardware.profile import Profile

__all__ = ["resume", "start"]


def start(options: Options, study_sha256: str | None, runs_dir: Path, name: str | None, storage: StorageUrl | None = None) -> RunFolder:
    """Begin a new run and work on it to the end of its budget; a run that cannot begin leaves nothing behind.

    storage: with the password that ``options`` does without.
    """
    if storage is not None:
        storage.check()  # refused before anything is made
    record = RunRecord(
        run="",
        created_at=now(),
        versions=versions(),
        study_sha256=study_sha256,
        options=asdict(options),
        startup=startup_of(options.trials),
    )

    def fill(folder: RunFolder, name: str) -> None:
        options.write(folder)
        record_code(folder, options)
        shared = None if storage is None else f"{name}-{uuid.uuid4().hex[:8]}"  # others may have runs of this name there
        replace(record, run=name, study_name=shared).write(folder)

    made = missing_folders(runs_dir)
    unfit = (ChildError, ValueError, OSError)
    with removed_on_error(None, unfit, made):
        folder = create_run_folder(runs_dir, name, Path(options.study.rpartition(":")[2]).name, fill)
    with owned(folder, storage) as ownership, at_work(folder, ownership) as parent:
        note(folder, "run_created")
        with removed_on_error(folder, unfit, made):
            _prepare(parent)
        _work(parent)
    return folder


def resume(
    folder: RunFolder, *, add: int = 0, allow_change: bool = False, storage: StorageUrl | None = None, take_over: bool = False
) -> RunFolder:
    """Go on with a run until its budget is met, after adding so many trials to it. One whose budget is met already is left as it is.

    A run whose trials are in a storage is joined, where others work on it. storage: its URL, where the run's own lacks a password.
    take_over: its owner, which was on another host, has ended. ConfigurationError where study, code or configuration have changed, unless
    that is allowed; what changed is told on stderr.
    """
    record, options = RunRecord.read(folder), Options.read(folder)
    if add < 0:
        raise ConfigurationError(f"add is {add}, but must be at least 0; a budget that was given stays")
    if record.state == "complete" and add == 0:
        return folder
    if record.plan is not None:
        _profile(folder)  # a damaged one is refused before anything is written
    with (
        owned(folder, _storage_of(options, storage), take_over=take_over) as ownership,
        _agreed(folder, record, options, allow_change) as changed,
        at_work(folder, ownership) as parent,
    ):
        note(folder, "run_resumed")
        if changed:
            record = accept(folder, record, options)
            note(folder, "change_allowed", changed=changed)
        if record.plan is not None and record.plan.elsewhere is None:
            _compare_machine(folder)
        if record.plan is None:
            _prepare(parent)
        _work(parent, add)
    return folder


def _raise_budget(folder: RunFolder, add: int) -> None:
    with exclusively(folder):
        options = Options.read(folder)
        options = replace(options, trials=options.trials + add)
        options.write(folder)
    note(folder, "budget_raised", trials=options.trials)
    say(f"the budget is now {options.trials} trials")


def _storage_of(options: Options, given: StorageUrl | None) -> StorageUrl | None:
    """The storage of a run. ConfigurationError where one is given that the run does not have."""
    if options.storage is None:
        if given is not None:
            raise ConfigurationError(f"storage is {given}, but must not be given: the run keeps its trials in its own folder; leave it out")
        return None
    return StorageUrl(options.storage) if given is None else given


@contextmanager
def _agreed(folder: RunFolder, record: RunRecord, options: Options, allowed: bool) -> Iterator[list[str]]:
    """What has changed since the run began, if anything; ConfigurationError unless that is allowed, and nothing is done then."""
    changed = changes(folder, record, options)
    if changed and not allowed:
        sys.stderr.write("".join(f"{printable(line)}\n" for line in (f"changed since run {record.run} began:", *changed)))
        raise ConfigurationError(f"run {record.run!r} is not what it was, but must be; put back what changed, or add --allow-config-change")
    yield changed


def _as_it_began(folder: RunFolder) -> bool:
    """Whether what the run's journal says still means what it meant to all of its trials: no change was ever allowed."""
    happened = {line.get("event") for line in read_lines(folder.events)}
    return "run_created" in happened and "change_allowed" not in happened


def _compare_machine(folder: RunFolder) -> None:
    """Say so where the run was planned on another machine: its predictions are of that one, what is measured from now on of this one."""
    profile = _profile(folder)
    changed = profile.differences()
    if changed:
        say(f"planned for {profile.described}, which is not this machine: {', '.join(changed)}; its throughput is simulated from now on")


def _profile(folder: RunFolder) -> Profile:
    from search.run_profile import frozen_profile  # takes its time to load

    return frozen_profile(folder)


def _prepare(parent: Parent) -> None:
    """Prepare, or wait until another process has."""
    while not parent.ownership.claim("preparing"):
        parent.pause()
        if RunRecord.read(parent.folder).plan is not None:
            return
    parent.check_ended(wait(parent.nursery.start("search.prepare", [str(parent.folder.path)]), parent.signals), "preparing")
    note(parent.folder, "run_prepared")


def _work(parent: Parent, add: int = 0) -> None:
    """Train all trials of the budget, with so many added to it, and close the run, or wait until another process has."""
    from search.lost_files import mend  # these need optuna, which takes its time to load
    from search.run.closing import close
    from search.run.loop import Loop
    from search.run.trials import Trials, lowest_accuracy

    folder, ownership = parent.folder, parent.ownership
    study, lost = ownership.open()
    if lost is not None:
        say(lost)
        note(folder, "journal_lost", what=lost)
    trials = Trials(parent, Options.read(folder), RunRecord.read(folder), study)
    trials.look()
    for loss in mend(folder, trials.known(), trials.recipe if _as_it_began(folder) else None):
        say(loss)
        note(folder, "files_lost", what=loss)
    if add:  # only now: a run that cannot go on keeps its budget
        lowest_accuracy(trials.known(), Options.read(folder).tolerance)
        _raise_budget(folder, add)
    options, record = Options.read(folder), RunRecord.read(folder)
    assert record.plan is not None
    with open_progress(options.trials) as view:
        Loop(parent, options, record, study, view).run()
        while not ownership.claim("closing"):
            parent.pause()
            if RunRecord.read(folder).state == "complete":
                return
        ownership.changed()  # one that was killed may have told the storage alone
        close(parent, options, record.plan, view)
