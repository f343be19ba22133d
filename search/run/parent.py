"""The process that works on a run: the right to do so, and all that it works with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from search.errors import ChildError, RunError, cause
from search.nursery import Nursery
from search.options import RunRecord
from search.owner import RunLock
from search.ownership import Ownership, Sole
from search.process import Signals, noted_signals, was_stopped
from search.run.state import state_kept
from search.rundir import RunFolder, resume_command
from search.storage_url import StorageUrl
from search.terminal import say


@dataclass(frozen=True)
class Parent:
    """A process that works on a run. signals: asked before every wait; nursery: its children are forked there."""

    folder: RunFolder
    ownership: Ownership
    signals: Signals
    nursery: Nursery

    def pause(self) -> None:
        """Wait for what is new. StoppedError when a signal has come."""
        self.signals.check()
        time.sleep(self.ownership.poll_s)

    def check_ended(self, code: int, what: str) -> None:
        """ChildError for a child that has said why it failed, RunError for one that others ended."""
        if was_stopped(code):
            raise RunError(f"{what} was stopped from outside; continue with: {resume_command(self.folder)}")
        if code != 0:
            raise ChildError(code)


@contextmanager
def owned(folder: RunFolder, storage: StorageUrl | None, *, take_over: bool = False) -> Iterator[Ownership]:
    """The right to work on a run: of this process alone, or as one of several on one storage."""
    if storage is not None:
        from search.shared import OUTAGES, Shared

        try:
            with Shared(folder, storage) as shared:
                yield shared
        except OUTAGES as error:
            raise RunError(
                f"the storage does not answer ({cause(error)}); once it does, continue with: {resume_command(folder)}"
            ) from error
        return
    with RunLock(folder, take_over=take_over) as lock:
        if lock.taken_over_from is not None:
            gone = lock.taken_over_from
            say(f"taking over from process {gone.pid} on {gone.host}, which has ended")
        yield Sole(folder, RunRecord.read(folder).run)


@contextmanager
def at_work(folder: RunFolder, ownership: Ownership) -> Iterator[Parent]:
    """This process at work on a run that is its own: signals are noted, and the run's state is kept true."""
    with noted_signals() as signals, state_kept(folder, ownership), Nursery(signals) as nursery:
        yield Parent(folder, ownership, signals, nursery)
