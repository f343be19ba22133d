"""The process that works on a run, and the lock that keeps it the only one; where several do, each notes itself."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from search.errors import RunLockedError
from search.files import read_json_if_valid, write_json
from search.rundir import RunFolder


@dataclass(frozen=True)
class Owner:
    """A process, so that it cannot be mistaken for a later one of the same pid."""

    pid: int
    host: str
    boot_id: str
    started: int  # clock ticks since boot

    @classmethod
    def this_process(cls) -> Owner:
        """The process that runs this."""
        return cls(os.getpid(), socket.gethostname(), _boot_id(), _start_ticks(os.getpid()) or 0)

    @property
    def alive(self) -> bool:
        """Whether it still runs; another machine's process counts as alive, since it cannot be seen from here."""
        if self.host != socket.gethostname():
            return True
        return self.boot_id == _boot_id() and _start_ticks(self.pid) == self.started


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name of the process may itself hold spaces and brackets
    return None if state == "Z" else int(rest[18])


def owner(folder: RunFolder) -> Owner | None:
    """The process that works on a run, dead or alive, if it has not let go; of several, one that is alive."""
    found = [_owner_in(path) for path in (folder.lock, *sorted(folder.owners.glob("*.json")))]
    known = [process for process in found if process is not None]
    return next((process for process in known if process.alive), known[0] if known else None)


def _owner_in(path: Path) -> Owner | None:
    data = read_json_if_valid(path)
    try:
        return Owner(**data) if data else None  # type: ignore[arg-type]  # a wrong one fails below
    except TypeError:
        return None


@contextmanager
def owner_noted(folder: RunFolder) -> Iterator[None]:
    """Let be seen that this process works on the run, as one of several."""
    _forget_the_dead(folder)
    mine = Owner.this_process()
    path = folder.owners / f"{mine.host}-{mine.pid}-{mine.started}.json"
    write_json(path, asdict(mine))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _forget_the_dead(folder)


def _forget_the_dead(folder: RunFolder) -> None:
    for path in folder.owners.glob("*.json"):
        process = _owner_in(path)
        if process is not None and not process.alive:
            path.unlink(missing_ok=True)


class RunLock:
    """The right to work on a run: a kernel lock, which dies with its process, on a file that says whose it is."""

    def __init__(self, folder: RunFolder, *, take_over: bool = False) -> None:
        """RunLockedError where another process has it: also one on another host, of which only the user can say that it has ended.

        take_over: the user says so.
        """
        self._descriptor: int | None = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
        self.taken_over_from: Owner | None = None
        before = owner(folder)
        unseen = before is not None and before.host != socket.gethostname()
        if not self._lock() or (before is not None and before.alive and not (unseen and take_over)):
            self._close()
            held_by = f"process {before.pid} on {before.host}" if before else "another process"
            remedy = "wait for it or stop it" + ("; if it is known to have ended, resume with --take-over" if unseen else "")
            raise RunLockedError(f"run {folder.name!r} belongs to {held_by}, but must have one owner; {remedy}")
        self.taken_over_from = before
        self._write(json.dumps(asdict(Owner.this_process())).encode())

    def _lock(self) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _write(self, content: bytes) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        os.fsync(self._descriptor)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def release(self) -> None:
        """Let go. The file stays, empty: removing it would let two processes lock two files of one name."""
        if self._descriptor is not None:
            self._write(b"")
            self._close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
