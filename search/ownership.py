"""Whose the trials of a run are: of one process, which keeps them in the run's own journal, or of several, which share a storage.

Sole                    study.journal is the study; the run's lock says who owns it
search.shared.Shared    the study is in the storage, and leases say who works on which trial
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from search.process import POLL_S
from search.rundir import RunFolder

if TYPE_CHECKING:
    import optuna


class Ownership(Protocol):
    """What the parent loop asks before it works on something: a trial, see `of_trial`, or a step of the run."""

    @property
    def poll_s(self) -> float:
        """How often to look for what is new."""

    @property
    def shared(self) -> bool:
        """Whether there may be other processes."""

    @property
    def outages(self) -> tuple[type[Exception], ...]:
        """What is raised where the study is out of reach for a while."""

    def open(self) -> tuple[optuna.Study, str | None]:
        """The study, with what was lost of its journal, in words."""

    def claim(self, what: str) -> bool:
        """Take it, unless another process has it; whether this one has it now."""

    def held(self, whats: set[str]) -> set[str]:
        """Which of these this process still has."""

    def alone(self) -> bool:
        """Whether no other process works on the run."""

    def changed(self) -> None:
        """The study has changed."""


def of_trial(number: int) -> str:
    """The name of a trial as something to own."""
    return f"trial {number}"


class Sole:
    """One process, which has the run's lock: everything is its own."""

    poll_s = POLL_S
    shared = False
    outages = ()

    def __init__(self, folder: RunFolder, run: str) -> None:
        self._folder, self._run = folder, run

    def open(self) -> tuple[optuna.Study, str | None]:
        """The journal's study."""
        from search.restore import opened

        return opened(self._folder, self._run)

    def claim(self, what: str) -> bool:
        """There is nobody else."""
        return True

    def held(self, whats: set[str]) -> set[str]:
        """All of them."""
        return whats

    def alone(self) -> bool:
        """There is nobody else."""
        return True

    def changed(self) -> None:
        """The journal is the study itself."""


@contextmanager
def exclusively(folder: RunFolder) -> Iterator[None]:
    """Keep the other processes of a run from changing its files for a moment."""
    with open(folder.mutex, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
