"""What happened to a network: one event for every growth and removal, appended to a file of JSON lines, never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

What = Literal[
    "prune_connections", "remove_units", "merge_units", "add_units", "grow_connections", "insert_layer", "accept", "restore"
]  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One edit.

    step: training steps made before it. connections: how many were added (growth) or removed. units: how many, by space. why: the
    rule that asked for it. loss_before, loss_after: mean loss on one fixed validation batch. connections_after, density_after:
    of the whole network. accuracy: on validation data, where it was what decided. densities: of every layer, after the edit.
    thresholds: the largest |weight| that was pruned, of every layer that lost connections to a pruning.
    """

    step: int
    what: What
    connections: int
    units: Mapping[str, int]
    why: str
    loss_before: float
    loss_after: float
    connections_after: int
    density_after: float
    accuracy: float | None = None
    densities: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass
class History:
    """Events in order; with ``path`` each one is also appended to that file at once."""

    path: Path | None = None
    events: list[Event] = field(default_factory=list)

    def append(self, event: Event) -> None:
        """Add one event."""
        self.events.append(event)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(event)) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint counts on the events before it

    def rewind(self, count: int) -> None:
        """Read the first ``count`` events of the file and forget the rest: what happened after the checkpoint will happen again."""
        if self.path is None:
            del self.events[count:]
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()[:count] if self.path.exists() else []
        if len(lines) < count:
            raise ValueError(
                f"{self.path} has {len(lines)} events, but must have the checkpoint's {count}; restore the file or start the trial anew"
            )
        self.events = [Event(**json.loads(line)) for line in lines]
        shorter = self.path.with_suffix(".tmp")
        with shorter.open("w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(shorter, self.path)
        sync_folder(self.path.parent)

    def total(self, *whats: What) -> int:
        """Connections of all events of these kinds."""
        return sum(event.connections for event in self.events if event.what in whats)

    def frame(self) -> pd.DataFrame:
        """One row per event; columns ``units.SPACE``, ``densities.LAYER`` and ``thresholds.LAYER``."""
        import pandas as pd

        return pd.DataFrame([flat(asdict(event)) for event in self.events])


def flat(record: Mapping[str, object]) -> dict[str, object]:
    """A record whose inner records are spread out, for a table.

    >>> flat({"step": 3, "units": {"a": 1, "b": 2}})
    {'step': 3, 'units.a': 1, 'units.b': 2}
    """
    found: dict[str, object] = {}
    for name, value in record.items():
        found |= {f"{name}.{inner}": entry for inner, entry in flat(value).items()} if isinstance(value, Mapping) else {name: value}
    return found


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder last: without it a power cut may bring the old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
