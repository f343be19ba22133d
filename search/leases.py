"""Who works on what, where several processes share a run: leases, in a study of their own beside the run's.

No storage of Optuna's gives a compare-and-set through all of its doors, the gRPC proxy among them. But all number the trials of a study
one after the other, however many processes add some. Such a study is a log in one order for all, and a claim is a line of it:

    subject    generation   holder
    trial 3    1            A          A has trial 3
    trial 3    2            C          A has shown no sign of life for the length of a lease: C has it now
    trial 3    2            B          of the claims to one generation the first counts: C still has it

A sign of life is a counter, an attribute of the study that its holder alone writes. The others add up, by their own monotonic clocks, for
how long they have watched it stand still; no machine's clock is compared with another's, and while a storage is down or the watcher
sleeps, nobody's lease runs out. A holder that slept while its lease was taken over learns so when it asks, as `Leases.held` reads the log.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType

import optuna
from optuna.trial import TrialState, create_trial

from search.owner import Owner

BEATS_PER_LEASE = 4
"""Signs of life in the length of a lease: three may be lost on the way."""

_SUBJECT, _GENERATION, _HOLDER = "subject", "generation", "holder"
_LEFT = -1


@dataclass(frozen=True)
class Holder:
    """A process that may hold leases. namespace: what its pid is counted in, which containers of one host do not share."""

    process: Owner
    namespace: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def this_process(cls) -> Holder:
        """The process that runs this, under a key that it never had before."""
        return cls(Owner.this_process(), _namespace())

    def to_json(self, beats: int) -> dict[str, object]:
        """What the others are to see of it."""
        return {**asdict(self.process), "namespace": self.namespace, "beats": beats}


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@dataclass(frozen=True)
class _Claim:
    """A line of the log that counts."""

    generation: int
    holder: str


@dataclass(frozen=True)
class _Seen:
    """The last sign of life of a holder, and for how long it has been watched since."""

    beats: int
    watched_s: float = 0.0


class Leases:
    """The leases of one process on what it works on: `with Leases(...) as leases`, else nobody hears that it lives.

    study: empty at first, and for this alone. lease_s: seconds without a sign of life after which others take over; equal for all.
    """

    def __init__(
        self, study: optuna.Study, lease_s: float, *, holder: Holder | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.holder = Holder.this_process() if holder is None else holder
        self._study, self._lease_s, self._clock = study, lease_s, clock
        self._seen: dict[str, _Seen] = {}
        self._gone: set[str] = set()
        self._beats, self._looked_at_s = 0, clock()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        self.beat()
        self.look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(self._lease_s)
        with suppress(Exception):  # a storage that has gone away is no second error: the leases run out
            self._show(_LEFT)  # what this process held is free at once

    def claim(self, subject: str) -> bool:
        """Take what nobody holds, or what a holder held that is gone. Whether this process has it now."""
        held = self._claims().get(subject)
        if held is not None and held.holder != self.holder.key:
            if not self._is_gone(held.holder):
                return False
            self.look()
            if not self._is_gone(held.holder):
                return False
        if held is None or held.holder != self.holder.key:
            self._append(subject, 1 if held is None else held.generation + 1)
        return subject in self.held()

    def held(self) -> set[str]:
        """All that this process has, and that no other has taken over."""
        return {subject for subject, claim in self._claims().items() if claim.holder == self.holder.key}

    def alone(self) -> bool:
        """Whether no other process shows signs of life."""
        self.look()
        with self._lock:
            others = set(self._seen) - {self.holder.key}
        return all(self._is_gone(key) for key in others)

    # Signs of life

    def beat(self) -> None:
        """Show a sign of life."""
        self._beats += 1
        self._show(self._beats)

    def look(self) -> None:
        """Note which of the others have shown one, and which are gone for good."""
        found = self._study.user_attrs
        with self._lock:
            now = self._clock()
            watched_s = min(now - self._looked_at_s, self._lease_s / BEATS_PER_LEASE)
            self._looked_at_s = now
            for key, shown in found.items():
                beats, before = shown["beats"], self._seen.get(key)
                if beats == _LEFT or self._died(shown):
                    self._gone.add(key)
                stands_still = before is not None and before.beats == beats
                self._seen[key] = _Seen(beats, before.watched_s + watched_s if before is not None and stands_still else 0.0)

    def _show(self, beats: int) -> None:
        self._study.set_user_attr(self.holder.key, self.holder.to_json(beats))

    def _died(self, shown: Mapping[str, object]) -> bool:
        """Whether a process that can be seen from here is no more: its lease need not run out."""
        process = Owner(*(shown[name] for name in ("pid", "host", "boot_id", "started")))  # type: ignore[arg-type]  # as it wrote them
        return process.host == socket.gethostname() and shown["namespace"] == self.holder.namespace and not process.alive

    def _is_gone(self, key: str) -> bool:
        with self._lock:
            seen = self._seen.get(key)
            if key in self._gone:
                return True
            if seen is not None:
                return seen.watched_s > self._lease_s
        self.look()  # it has come since
        return False

    def _live(self) -> None:
        while not self._ended.wait(self._lease_s / BEATS_PER_LEASE):
            with suppress(Exception):  # whatever a storage raises that cannot be reached; where that lasts, others take over
                self.beat()
                self.look()

    # The log

    def _append(self, subject: str, generation: int) -> None:
        line = {_SUBJECT: subject, _GENERATION: generation, _HOLDER: self.holder.key}
        self._study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.0, user_attrs=line))

    def _claims(self) -> dict[str, _Claim]:
        """By subject, the claim that counts."""
        found: dict[str, _Claim] = {}
        for line in self._study.get_trials(deepcopy=False):
            subject, generation, holder = (line.user_attrs[name] for name in (_SUBJECT, _GENERATION, _HOLDER))
            if generation == (found[subject].generation + 1 if subject in found else 1):
                found[subject] = _Claim(generation, holder)
        return found
