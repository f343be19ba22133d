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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from hardware.cores import idle_first
from search.errors import StoppedError

PARENT_VARIABLE = "GROW_PARENT"
"""Environment variable that tells a child its parent's pid, which the system's own answer is compared with."""

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


@dataclass(frozen=True)
class Slot:
    """A device that one process at a time trains on: a core of its own, or a GPU."""

    kind: Literal["cpu", "cuda"]
    index: int

    def environment(self) -> dict[str, str]:
        """What confines a process to the device."""
        if self.kind == "cpu":
            return {"CUDA_VISIBLE_DEVICES": ""}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[self.index] if visible else str(self.index)}


def slots(kind: Literal["cpu", "cuda"], count: int) -> list[Slot]:
    """One slot a device; on CPU no more than there are cores."""
    if kind == "cuda":
        return [Slot(kind, index) for index in range(count)]
    return [Slot(kind, core) for core in idle_first(count)[:count]]


def spawn(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    core: int | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
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
    )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    return process


def wait(process: subprocess.Popen[bytes], signals: Signals) -> int:
    """Wait for a child; when a signal comes, stop it and raise StoppedError. Returns its exit code."""
    try:
        while (code := process.poll()) is None:
            signals.check()
            time.sleep(POLL_S)
        return code
    finally:
        stop([process])


def stop(processes: Sequence[subprocess.Popen[bytes]], patience_s: float = STOP_S) -> None:
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


def ending(code: int, log: Path) -> str:
    """Why a worker ended that left no result: its signal or exit code and the last line that it logged."""
    if code < 0:
        cause = f"the worker was ended by {signal.Signals(-code).name}"
        return cause + (", perhaps because memory ran out" if -code == signal.SIGKILL else "")
    said = last_words(log)
    return f"the worker ended with exit code {code}" + (f": {said}" if said else "")


def last_words(log: Path) -> str:
    """The last line that a worker logged, empty if there is none."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("grow: ") if lines else ""
