"""Devices of this host, held while something trains on them or is timed there: no clock runs while anything else does.

Trainings share a device, a measurement has it to itself, whichever processes of this user they are in. Who wants to measure closes the
gate first, so that no further training begins: the measurement waits for those at work, and no longer.

    training     gate passed, device held with others
    measuring    gate held, device held alone

The cores of a host share its caches and its memory: on CPU they count as one device.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from hardware.cache import cache_folder
from search.errors import ConfigurationError
from search.slots import Slot

TEMPORARY = Path("/tmp")
"""For who has no home to write to. Not the environment's, which is another one in another session."""


def lock_folder() -> Path:
    """Where this user's locks of this host's devices are, in every session of the user; made when it is not there.

    ConfigurationError where others can write to it.
    """
    name = f"{socket.gethostname()}-{os.getuid()}"  # homes may be common to several hosts
    places = (cache_folder().parent / "locks" / name, TEMPORARY / f"grow-{os.getuid()}")
    for place in places:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
            if _is_own(place):
                return place
    raise ConfigurationError(
        f"folder of locks is {str(places[-1])!r}, but must be a folder of this user's that nobody else can write to; remove what is there"
    )


def _is_own(place: Path) -> bool:
    found = place.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o222 == 0o200


class Hold:
    """A right to devices, once `ready`; it ends with `release`, and with the process."""

    def __init__(self, names: Sequence[str], *, alone: bool) -> None:
        self.alone = alone
        self._names = sorted(names)  # in one order for all, so that none waits for another in a circle
        self._held = ExitStack()
        self._gates: list[IO[bytes]] = []
        self._devices: list[IO[bytes]] = []

    def ready(self) -> bool:
        """Take what is free by now; whether all of it is held. To be asked again until it is."""
        if len(self._devices) == len(self._names):
            return True
        taken = self._measure() if self.alone else self._train()
        if not taken and not self.alone:
            self.release()  # who trains must not stand in the way of who waits to measure
        return taken

    def release(self) -> None:
        """Let go of everything."""
        self._held.close()
        self._gates.clear()
        self._devices.clear()

    def _measure(self) -> bool:
        shut = _take(self._held, self._gates, [f"{name}.gate" for name in self._names], fcntl.LOCK_EX)
        return shut and _take(self._held, self._devices, [f"{name}.lock" for name in self._names], fcntl.LOCK_EX)

    def _train(self) -> bool:
        with ExitStack() as passing:
            passed = _take(passing, [], [f"{name}.gate" for name in self._names], fcntl.LOCK_SH)
            return passed and _take(self._held, self._devices, [f"{name}.lock" for name in self._names], fcntl.LOCK_SH)


def _take(stack: ExitStack, taken: list[IO[bytes]], names: Sequence[str], how: int) -> bool:
    """Go on taking the locks that are not among the taken ones yet, up to the first that is not free; whether there was none."""
    folder = lock_folder()
    for name in names[len(taken) :]:
        file = open(folder / name, "r+b", opener=_made)  # noqa: SIM115  # held until the stack is closed
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        taken.append(stack.enter_context(file))
    return True


def _made(path: str, flags: int) -> int:
    """Open a lock: made when it is not there, never another file that a link names, and never emptied."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def devices_of(slots: Sequence[Slot]) -> list[str]:
    """The names that the devices of some slots are locked by."""
    return sorted({name for slot in slots for name in ([f"cuda-{name}" for name in slot.visible()] if slot.kind == "cuda" else ["cpu"])})
