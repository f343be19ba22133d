"""Notices that another rank died, stopped or hangs, while this one waits for it.

A rank that waits for a dead one waits for ever: a collective knows neither whom it waits for nor how long an edit may take. So every
rank gives a sign of life about once a second, with its step and what it is doing, and looks at those of the others:

    silent      no sign of life for `SILENT_S` (`SILENT_BUSY_S` in the middle of an edit, whose native code may not let others run)
    still       for `STILL_S` it used no processor and waited for no other rank, whatever it was doing: in a lock, on a dead file system
    hanging     for `STUCK_S` (or five of the longest steps yet) no rank made a step, and this one computes (it does not stand still)
                while others wait for it
    failed      it says so itself

Work that goes on is no hang, however long it takes: an edit of a large network, an evaluation, a checkpoint. So a loop without end is
found in a step, whose time is known from those before it, but not in an edit.

Legend: s seconds of this process's monotonic clock; every rank compares signs with earlier ones, never its clock with another's.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed offers them, but not to type checkers

BEAT_S = 0.5
SILENT_S = 12.0
SILENT_BUSY_S = 24.0
STILL_S = 20.0
WORK_S = 0.02
"""Processor time that shows that a rank works; who polls for what never comes uses less in `STILL_S`."""
STUCK_S = 20.0
FIRST_STEP_S = 120.0
"""Time that the first step may take, and the first after anything else, such as an edit: kernels are prepared, libraries loaded."""

Lost = Callable[[int, str], None]
"""Number of the rank that is lost, and what is the matter with it. Must end this process."""

_WAITING = ("torch.distributed", "hardware.execute.exchange")  # modules in which a rank waits for others


@dataclass
class _Seen:
    """The last sign of one rank, and since when it, its step and what it does are the same."""

    sign: str = ""
    step: int = -1
    doing: str = ""
    still_s: float = 0.0  # for which it has neither worked nor waited, by its own clock
    at: float = field(default_factory=time.monotonic)
    doing_at: float = field(default_factory=time.monotonic)

    def take(self, sign: str, now: float) -> None:
        if sign == self.sign:
            return
        told = json.loads(sign)
        if (told["doing"], told["step"]) != (self.doing, self.step):
            self.doing_at = now
        self.sign, self.step, self.doing, self.at = sign, told["step"], told["doing"], now
        self.still_s = told["still_s"]

    @property
    def computes(self) -> bool:
        """Whether it is at work in a step: it waits for nobody, and does not stand still."""
        return self.doing == "computing" and self.still_s < STILL_S / 2

    @property
    def where(self) -> str:
        """What it is at, in words."""
        return f"in step {self.step + 1}" if self.doing in ("computing", "waiting") else f"while {self.doing}"


class _Rest:
    """For how long the thread that makes this has neither worked nor waited for another rank."""

    def __init__(self) -> None:
        self._clock = _processor_clock()
        self._worked_s, self._worked_at = self._clock(), time.monotonic()
        self._looked_at = self._worked_at

    def seconds(self) -> float:
        """As of now; to be asked again and again."""
        now, worked_s = time.monotonic(), self._clock()
        stopped = now - self._looked_at > SILENT_S / 2  # the whole process was
        if worked_s - self._worked_s >= WORK_S or stopped or _waits():
            self._worked_s, self._worked_at = worked_s, now
        self._looked_at = now
        return now - self._worked_at


class Watch:
    """Signs of life of this rank, and an eye on those of the others, while the context lasts. The thread that enters it is the one watched.

    ``store`` is one that all ranks can reach; ``lost`` is called from a thread of its own when a rank is lost, while the main thread
    may be waiting in a collective for good.
    """

    def __init__(self, store: Store, rank: int, count: int, lost: Lost) -> None:
        self._store, self._rank, self._count, self._lost = PrefixStore("watch", store), rank, count, lost
        self._step, self._busy, self._failed = 0, "", ""
        self._stepped_at, self._longest_s = time.monotonic(), 0.0
        self._first = True  # whether no step was made since the start or since the last thing that was none
        self._rest: _Rest | None = None  # once the watch has begun
        self._seen = [_Seen() for _ in range(count)]
        self._asked_at = time.monotonic()  # when the store last answered
        self._broken = False  # a connection broke: whoever is silent is dead, not busy
        self._ended = threading.Event()
        self._number = 0

    def __enter__(self) -> Watch:
        self._rest = _Rest()
        self._sign()
        for other in range(self._count):  # nobody asks for a sign that was never given
            self._store.wait([str(other)], timedelta(seconds=FIRST_STEP_S))
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, name=f"watch{work.__name__}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the watch; the others learn how this rank ended."""
        self._ended.set()
        self._failed = "" if error is None else f"failed with {type(error).__name__}: {error}"
        self._busy = "ended"
        self._sign()

    def made(self, step: int) -> None:
        """So many steps are made."""
        now = time.monotonic()
        if not self._first:
            self._longest_s = max(self._longest_s, now - self._stepped_at)
        self._step, self._stepped_at, self._first = step, now, False

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """Something takes its time, and is no step."""
        before, self._busy = self._busy, doing
        try:
            yield
        finally:
            self._busy, self._stepped_at, self._first = before, time.monotonic(), True

    def explain(self, error: BaseException) -> None:
        """A collective failed because another rank is gone: wait until it is known which one. Returns if none is found."""
        self._broken = True
        time.sleep(SILENT_S + 4 * BEAT_S)

    # ------------------------------------------------------------------ threads

    def _exchange(self) -> None:
        """Give signs and read those of the others. A store that is gone may never answer: the other thread sees that."""
        while not self._ended.wait(BEAT_S):
            try:
                self._sign()
                for other in range(self._count):
                    self._seen[other].take(self._store.get(str(other)).decode(), time.monotonic())
                self._asked_at = time.monotonic()
            except RuntimeError:  # torch's errors of connections, timeouts included
                continue

    def _sign(self) -> None:
        self._number += 1
        still_s = 0.0 if self._rest is None else self._rest.seconds()
        sign = {"number": self._number, "step": self._step, "doing": self._doing(), "still_s": still_s, "failed": self._failed}
        self._store.set(str(self._rank), json.dumps(sign))

    def _doing(self) -> str:
        return self._busy or ("waiting" if _waits() else "computing")

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(BEAT_S):
            now = time.monotonic()
            if now - before > SILENT_S / 2:  # this process itself was stopped: what it last saw is old, not the others
                self._excuse(now)
            before = now
            found = self._found(now)
            if found is not None and not self._ended.is_set():
                self._lost(*found)
                return

    def _excuse(self, now: float) -> None:
        self._asked_at = self._stepped_at = now
        for seen in self._seen:
            seen.at = seen.doing_at = now

    def _found(self, now: float) -> tuple[int, str] | None:
        """A rank that is lost, and what is the matter with it."""
        if now - self._asked_at > SILENT_S + 2 * BEAT_S:
            return 0, f"cannot be reached: where all ranks meet, nobody has answered for {now - self._asked_at:.0f} s"
        others = [(number, seen) for number, seen in enumerate(self._seen) if number != self._rank and seen.sign]
        for number, seen in others:
            failed = json.loads(seen.sign)["failed"]
            if failed:
                return number, failed
            limit = SILENT_BUSY_S if seen.doing not in ("computing", "waiting") and not self._broken else SILENT_S
            if seen.doing != "ended" and now - seen.at > limit:
                return number, f"has given no sign of life for {now - seen.at:.0f} s"
        return self._still() or self._stuck(now)

    def _still(self) -> tuple[int, str] | None:
        """A rank that does nothing at all, this one too, while others are there to end."""
        for number, seen in enumerate(self._seen):
            if self._count > 1 and seen.doing != "ended" and seen.still_s > STILL_S:
                return number, f"hangs {seen.where}: for {seen.still_s:.0f} s it has done nothing, and it waits for no other rank"
        return None

    def _stuck(self, now: float) -> tuple[int, str] | None:
        """The rank that all wait for, where nobody makes a step any more."""
        limit = FIRST_STEP_S if self._first else max(STUCK_S, 5 * self._longest_s)
        if self._busy or now - self._stepped_at < limit or any(not seen.sign for seen in self._seen):
            return None
        if any(seen.doing not in ("computing", "waiting") for seen in self._seen):
            return None
        hanging = [number for number, seen in enumerate(self._seen) if seen.computes and now - seen.doing_at > limit / 2]
        if not hanging or len(hanging) == self._count:
            return None
        return hanging[0], f"hangs in step {self._step + 1}: for {now - self._stepped_at:.0f} s it computes, and others wait for it"


def _processor_clock() -> Callable[[], float]:
    """Processor seconds of the calling thread, as any thread can read them; of the whole process where the system tells no more."""
    if not hasattr(time, "pthread_getcpuclockid"):  # macOS
        return time.process_time
    return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))


def _waits() -> bool:
    """Whether a thread of this process, other than those of watches, is in a message to other ranks."""
    frames = _frames()
    watching = {thread.ident for thread in threading.enumerate() if thread.name.startswith("watch_")}
    return any(_in_message(frame) for ident, frame in frames.items() if ident not in watching)


_LOOKING = threading.Lock()
"""Held by who looks at all threads' frames: one at a time."""


def _frames() -> Mapping[int, Any]:
    """What every thread is at, by its number.

    Python holds a lock meanwhile that every thread takes when it begins or ends. Before 3.12 garbage may be collected under it, and a
    tensor among it lets other threads run: one of them waits for that lock, and this one for its turn, for ever. So none is collected.
    """
    with _LOOKING:
        collected = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if collected:
                gc.enable()


def _in_message(frame: Any) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_WAITING):
            return True
        frame = frame.f_back
    return False
