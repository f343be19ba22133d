"""Child processes of a run: started without a way to outlive their parent, stopped by a signal, and pinned to their own core.

The parent polls, so that a signal that asks it to stop is answered at once, whatever it waits for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from search.errors import StoppedError

PARENT_VARIABLE = "GROW_PARENT"
"""Environment variable that tells a child its parent's pid, which the system's own answer is compared with."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that keep libraries from making threads of their own when they are loaded."""

NOTICE = "grow: note: "
"""How a line of a worker's log begins that the user is to see."""

POLL_S = 0.05
STOP_S = 30.0


class Signals:
    """Notes the first SIGINT or SIGTERM, for loops to look at; the second SIGINT is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: int | None = None

    def check(self) -> None:
        """StoppedError when a signal has come."""
        if self.received is not None:
            raise StoppedError(self.received)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


@contextmanager
def noted_signals() -> Iterator[Signals]:
    """Signals that ask the process to stop are noted while the context lasts."""
    signals = Signals()
    before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def spawn(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    core: int | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start ``python -m module``, in a session of its own, so that Ctrl-C on the terminal reaches the parent only.

    -P keeps the current folder, which may hold a ``search`` or a ``grow`` of the user's, out of the module path.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {}), PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        pass_fds=pass_fds,
    )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    return process


class Child(Protocol):
    """A process that was spawned or forked."""

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal, once it is known."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired after so many seconds."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


def wait(process: Child, signals: Signals) -> int:
    """Wait for a child; when a signal comes, stop it and raise StoppedError. Returns its exit code."""
    try:
        while (code := process.poll()) is None:
            signals.check()
            time.sleep(POLL_S)
        return code
    finally:
        stop([process])


def stop(processes: Sequence[Child], patience_s: float = STOP_S) -> None:
    """End children: SIGTERM, on which workers write a checkpoint, and SIGKILL to those that do not end in time."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + patience_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def die_with_parent() -> None:
    """Let the kernel send this child SIGTERM when its parent ends, and end now if it has ended already."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if orphaned():
        raise StoppedError(signal.SIGTERM, "the parent process has ended")


def orphaned() -> bool:
    """Whether the process that started this one has ended."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)


def was_stopped(code: int) -> bool:
    """Whether an exit code says that somebody else ended the process, so that it can go on where it was."""
    asked = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    return code in (*(-number for number in asked), *(128 + number for number in asked))


def was_killed(code: int) -> bool:
    """Whether it was SIGKILL, which is what the system sends where memory ran out."""
    return code in (-signal.SIGKILL, 128 + signal.SIGKILL)


def out_of_memory_kills(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Processes that the system has ended because memory ran out: SIGKILL does not tell that from a user's.

    Of this process' control group, which its workers are in, whosever limit was met; of the whole host where there is none.
    """
    for path in (*_memory_events(proc, groups), proc / "vmstat"):
        with suppress(OSError, ValueError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0


def _memory_events(proc: Path, groups: Path) -> list[Path]:
    """Where the system counts them for a control group: version 2 has no name, and version 1 one for memory."""
    try:
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    second = [groups / path.lstrip("/") / "memory.events" for _, name, path in lines if not name]
    first = [groups / "memory" / path.lstrip("/") / "memory.oom_control" for _, names, path in lines if "memory" in names.split(",")]
    return second + first


def ending(code: int, log: Path) -> str:
    """Why a worker ended that left no result: its signal or exit code and the last line that it logged."""
    if code < 0:
        return f"the worker was ended by {signal.Signals(-code).name}"
    said = last_words(log)
    return f"the worker ended with exit code {code}" + (f": {said}" if said else "")


def said(log: Path, begin: int) -> list[str]:
    """What a process said to the user in a log, from a byte on, unless it is why it ended."""
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines() if log.exists() else []
    return [line.removeprefix(NOTICE) for line in lines if line.startswith(NOTICE)]


def last_words(log: Path) -> str:
    """The last line that a worker logged, empty if there is none."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("grow: ") if lines else ""
