"""A run that several processes work on, of one machine or of many: the study is in a storage, leases say who works on which trial.

The folder is one and the same for all: a common file system joins machines. Its journal follows the storage, so that whoever looks at the
run, or takes it away, needs neither the storage nor its password.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from types import TracebackType

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError

from search.errors import RunNotFoundError
from search.leases import Leases
from search.options import Options, RunRecord
from search.owner import owner_noted
from search.ownership import exclusively
from search.rundir import RunFolder
from search.storage import made_study, open_study, repair
from search.storage_url import StorageUrl, close

OUTAGES: tuple[type[Exception], ...] = (StorageInternalError, SQLAlchemyError)
"""What storages raise that do not answer, those of the drivers at hand."""
with suppress(ImportError):
    import grpc

    OUTAGES = (*OUTAGES, grpc.RpcError)

POLL_S = 0.25
"""How often a storage is asked what is new."""


class Shared:
    """One of the processes: `with Shared(...) as ownership`, see `search.ownership.Ownership`."""

    poll_s = POLL_S
    shared = True
    outages = OUTAGES

    def __init__(self, folder: RunFolder, url: StorageUrl) -> None:
        record, options = RunRecord.read(folder), Options.read(folder)
        self._folder, self._run = folder, record.run
        name = record.study_name or record.run
        self._names = (name, f"{name} leases")
        self._storage = url.open()
        self._inside = ExitStack()
        self._inside.callback(close, self._storage)
        if record.plan is not None and name not in optuna.get_all_study_names(self._storage):
            self._inside.close()
            raise RunNotFoundError(f"study {name!r} is not in {url}, but must be there; name the storage that the run began in")
        self._study = made_study(self._storage, name)
        log = optuna.create_study(storage=self._storage, study_name=self._names[1], load_if_exists=True)
        self._leases = Leases(log, options.lease_s)

    def __enter__(self) -> Shared:
        self._inside.callback(self._forget)
        self._inside.enter_context(owner_noted(self._folder))
        self._inside.enter_context(self._leases)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inside.__exit__(kind, error, trace)

    def _forget(self) -> None:
        """A run that could not begin, and whose folder is gone, leaves nothing in the storage either."""
        if not self._folder.path.exists():
            for name in self._names:
                optuna.delete_study(study_name=name, storage=self._storage)

    def open(self) -> tuple[optuna.Study, str | None]:
        """The storage's study."""
        return self._study, self._follow()

    def claim(self, what: str) -> bool:
        """Take it, unless another process has it and lives."""
        return self._leases.claim(what)

    def held(self, whats: set[str]) -> set[str]:
        """Which of these no other process has taken over."""
        return whats & self._leases.held() if whats else whats

    def alone(self) -> bool:
        """Whether no other process shows signs of life; not where the storage cannot tell."""
        try:
            return self._leases.alone()
        except OUTAGES:
            return False

    def changed(self) -> None:
        """Let the folder's journal follow."""
        self._follow()

    def _follow(self) -> str | None:
        journal = self._folder.journal
        with exclusively(self._folder):
            try:
                repair(journal)
                follow(self._study, open_study(journal, self._run))
            except RunNotFoundError as damage:
                os.replace(journal, journal.with_name(journal.name + ".damaged"))
                follow(self._study, open_study(journal, self._run))
                return f"{damage}; it is made anew from the storage"
        return None


def follow(study: optuna.Study, copy: optuna.Study) -> None:
    """Add to a copy of a study what is new: trials that were entered, and what became of those that it has."""
    there = copy.get_trials(deepcopy=False)
    for trial in study.get_trials(deepcopy=False):
        if trial.number >= len(there):
            copy.add_trial(trial)
        elif trial.state.is_finished() and not there[trial.number].state.is_finished():
            _tell(copy, there[trial.number], trial)


def _tell(copy: optuna.Study, running: FrozenTrial, told: FrozenTrial) -> None:
    mine = Trial(copy, running._trial_id)
    for name, value in told.user_attrs.items():
        if running.user_attrs.get(name) != value:
            mine.set_user_attr(name, value)
    for name, value in told.constraints.items():
        if name not in running.constraints:
            mine.set_constraint(name, value)
    copy.tell(told.number, told.values, told.state)
