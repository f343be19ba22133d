"""The peak of a process's resident memory since a moment, from Linux's own counters."""

from __future__ import annotations

from pathlib import Path

_SELF = Path("/proc/self")


class Peak:
    """Counts from now: ``bytes`` is what the resident memory has risen by since, at its highest."""

    def __init__(self) -> None:
        (_SELF / "clear_refs").write_text("5")  # the high-water mark starts anew at what is resident now
        self._start = _high_water()

    @property
    def bytes(self) -> int:
        """Peak less start."""
        return _high_water() - self._start


def _high_water() -> int:
    found = next(line for line in (_SELF / "status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(found.split()[1]) * 1024
