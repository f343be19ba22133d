"""What is seen of a run while it works, on stderr: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from search.files import JsonObject, last_lines, read_json_if_valid
from search.rundir import RunFolder
from search.terminal import console, printable, say

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

LINE_EVERY_S = 10.0
TABLE_EVERY_S = 0.5


class Progress(Protocol):
    """What the parent loop tells about its work."""

    def say(self, text: str) -> None:
        """A line of its own."""

    def tick(self, folder: RunFolder, numbers: Sequence[int], told: int) -> None:
        """The trials that train at the moment, and how many are done; called often."""

    def rest(self) -> None:
        """Nothing trains any more."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to a child process for a while."""


def started(number: int, role: str, recipe: Mapping[str, object], *, again: bool = False) -> str:
    """The line for a trial that starts, or goes on from a checkpoint.

    >>> started(0, "baseline_dense", {}, again=True)
    'trial 0 goes on from its last checkpoint: baseline dense'
    """
    begun = f"trial {number} {'goes on from its last checkpoint' if again else 'started'}"
    if role != "search":
        return f"{begun}: {role.replace('_', ' ')}"
    names = ("initial", "density", "growth", "pruning", "devices", "strategy")
    return f"{begun}: {', '.join(f'{name} {_short(recipe[name])}' for name in names if name in recipe)}"


def finished(number: int, result: Mapping[str, object], broken: Sequence[str]) -> str:
    """The line for a trial that is complete. broken: the constraints that it breaks."""
    facts = [
        f"validation accuracy {_percent(result.get('accuracy'))}",
        f"density {_percent(result.get('density'))}",
        f"{result.get('word', 'predicted')} {_short(result.get('predicted_samples_per_s'))} samples/s",
    ]
    return f"trial {number} complete: {', '.join(facts)}" + "".join(f"; {name}" for name in broken)


def ended(number: int, state: str, reason: str) -> str:
    """The line for a trial that ended without figures.

    >>> ended(7, "stopped_early", "behind trial 3")
    'trial 7 stopped early: behind trial 3'
    """
    return f"trial {number} {state.replace('_', ' ')}: {reason}"


def _percent(value: object) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else "-"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)


class PlainProgress:
    """A line for each change, and one every ten seconds for what trains."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._next = time.monotonic() + LINE_EVERY_S

    def say(self, text: str) -> None:
        """A line of its own."""
        say(text)

    def tick(self, folder: RunFolder, numbers: Sequence[int], told: int) -> None:
        """Every ten seconds, where each trial stands."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_EVERY_S
        for number in numbers:
            course = _Course.read(folder, number)
            self.say(f"[{told}/{self._trials}] trial {number}: {course}")

    def rest(self) -> None:
        """Nothing to clear away."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing to clear away."""
        yield


class LiveProgress:
    """One table that is drawn anew in place."""

    def __init__(self, live: Live, trials: int) -> None:
        self._live, self._trials = live, trials
        self._next = 0.0

    def say(self, text: str) -> None:
        """A line above the table."""
        self._live.console.print(printable(text))

    def tick(self, folder: RunFolder, numbers: Sequence[int], told: int) -> None:
        """Draw the table anew, twice a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TABLE_EVERY_S
        self._live.update(self._table(folder, numbers, told), refresh=True)

    def rest(self) -> None:
        """Take the table away, which would go on telling of trials that have ended."""
        self._live.update("", refresh=True)

    def _table(self, folder: RunFolder, numbers: Sequence[int], told: int) -> Table:
        from rich.table import Table

        table = Table(title=printable(f"{folder.name}: {told} of {self._trials} trials done"), title_justify="left")
        for heading in ("trial", "phase", "step", "density", "accuracy", "steps/s", "time left"):
            table.add_column(heading, justify="left" if heading == "phase" else "right")
        for number in numbers:
            table.add_row(str(number), *map(printable, _Course.read(folder, number).cells()))
        return table

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the table away, and bring it back."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()


class _Course:
    """Where a trial stands, by the last line of its metrics, and the last accuracy, which few lines hold."""

    def __init__(self, metrics: JsonObject, accuracy: object, steps: object) -> None:
        self._metrics, self._accuracy, self._steps = metrics, accuracy, steps

    @classmethod
    def read(cls, folder: RunFolder, number: int) -> _Course:
        files = folder.trial(number)
        lines = list(last_lines(files.metrics))
        accuracy = next((line["accuracy"] for line in lines if line.get("accuracy") is not None), None)
        return cls(lines[0] if lines else {}, accuracy, (read_json_if_valid(files.recipe) or {}).get("steps"))

    def cells(self) -> list[str]:
        """Phase, step, density, accuracy, rate and time left."""
        m = self._metrics
        step, rate = m.get("step"), m.get("steps_per_s")
        left = "-"
        if isinstance(step, int) and isinstance(self._steps, int) and isinstance(rate, int | float) and rate > 0:
            left = f"{(self._steps - step) / rate:.0f} s"
        return [
            str(m.get("phase", "starting")),
            f"{_short(step)}/{_short(self._steps)}",
            _percent(m.get("density")),
            _percent(self._accuracy),
            _short(rate),
            left,
        ]

    def __str__(self) -> str:
        phase, step, density, accuracy, rate, left = self.cells()
        return f"{phase}, step {step}, density {density}, accuracy {accuracy}, {rate} steps/s, {left} left"


@contextmanager
def open_progress(trials: int) -> Iterator[Progress]:
    """The view that suits stderr."""
    if not sys.stderr.isatty():
        yield PlainProgress(trials)
        return
    from rich.live import Live

    with Live(console=console(stderr=True), auto_refresh=False, transient=True) as live:
        yield LiveProgress(live, trials)
