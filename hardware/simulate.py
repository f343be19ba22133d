"""Tasks on resources, in time: list scheduling, event by event.

A task begins as soon as all tasks before it have ended and all its resources are free; among several that could, the one with the
smallest number is first (Graham 1969). A task that is disturbed goes on more slowly for as long as it is.

Legend: seconds throughout; tasks are numbered by their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

TaskKind: TypeAlias = Literal["forward", "backward", "communication", "overhead"]
_TOLERANCE = 1e-12  # share of a task below which it has ended: what is left after adding up times is rounding


@dataclass(frozen=True)
class Task:
    """Something that takes time. resources: held all the while, by one task at a time; after: numbers of the tasks that come before.

    disturbed_by: resources; while another task holds one of them, this one goes on more slowly.
    """

    name: str
    kind: TaskKind
    seconds: float
    resources: tuple[str, ...]
    after: tuple[int, ...] = ()
    disturbed_by: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class Span:
    """When a task ran."""

    task: Task
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """When each task ran, in the order of the tasks."""

    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """The end of the last task."""
        return max((span.end_s for span in self.spans), default=0.0)

    def busy_s(self, resource: str, *kinds: TaskKind) -> float:
        """Seconds for which tasks (of some kinds) hold a resource."""
        return sum(s.end_s - s.begin_s for s in self.spans if resource in s.task.resources and (not kinds or s.task.kind in kinds))

    @property
    def resources(self) -> tuple[str, ...]:
        """All resources, as they come."""
        return tuple(dict.fromkeys(name for span in self.spans for name in span.task.resources))


def schedule(tasks: Sequence[Task], slowdown: float = 1.0) -> Timeline:
    """Run all tasks. slowdown: how many times longer a disturbed task takes. ValueError where a task waits for a later one.

    >>> line = schedule([Task("a", "forward", 2.0, ("x",)), Task("b", "forward", 1.0, ("x",)), Task("c", "forward", 4.0, ("y",), (0,))])
    >>> [(span.task.name, span.begin_s, span.end_s) for span in line.spans]
    [('a', 0.0, 2.0), ('b', 2.0, 3.0), ('c', 2.0, 6.0)]
    """
    _check(tasks, slowdown)
    state = _State(tasks, slowdown)
    while state.running or state.ready:
        state.begin()
        state.advance()
    return Timeline(tuple(Span(task, *state.times[number]) for number, task in enumerate(tasks)))


def _check(tasks: Sequence[Task], slowdown: float) -> None:
    if slowdown < 1:
        raise ValueError(f"slowdown is {slowdown}, but must be at least 1; 1 means that nothing disturbs")
    for number, task in enumerate(tasks):
        late = next((other for other in task.after if not 0 <= other < number), None)
        if late is not None:
            raise ValueError(f"task {task.name!r} is number {number} and waits for {late}, but must wait for earlier ones; reorder them")
        if not 0 <= task.seconds < float("inf"):
            raise ValueError(f"seconds of task {task.name!r} is {task.seconds}, but must be finite and at least 0; check the profile")


class _State:
    """Where all tasks are at one moment."""

    def __init__(self, tasks: Sequence[Task], slowdown: float) -> None:
        self.tasks, self.slowdown = tasks, slowdown
        self.now = 0.0
        self.times: dict[int, tuple[float, float]] = {}
        self.left: dict[int, float] = {}  # seconds of work of every running task
        self.begun: dict[int, float] = {}
        self.held: dict[str, int] = {}  # by which task
        self.waits = [len(set(task.after)) for task in tasks]
        self.followers: list[list[int]] = [[] for _ in tasks]
        for number, task in enumerate(tasks):
            for other in set(task.after):
                self.followers[other].append(number)
        self.ready = [number for number, count in enumerate(self.waits) if count == 0]  # sorted

    @property
    def running(self) -> bool:
        return bool(self.left)

    def begin(self) -> None:
        """Begin all tasks that can, in their order."""
        waiting = []
        for number in self.ready:
            task = self.tasks[number]
            if any(name in self.held for name in task.resources):
                waiting.append(number)
                continue
            self.held.update(dict.fromkeys(task.resources, number))
            self.left[number], self.begun[number] = task.seconds, self.now
        self.ready = waiting

    def advance(self) -> None:
        """Go on to the next end of a task, and end all that end then."""
        rates = {number: self._rate(number) for number in self.left}
        step = min(left / rates[number] for number, left in self.left.items())
        self.now += step
        ended = []
        for number, left in self.left.items():
            self.left[number] = left - step * rates[number]
            if self.left[number] <= _TOLERANCE * self.tasks[number].seconds:
                ended.append(number)
        for number in ended:
            self._end(number)

    def _rate(self, number: int) -> float:
        disturbed = any(self.held.get(name, number) != number for name in self.tasks[number].disturbed_by)
        return 1 / self.slowdown if disturbed else 1.0

    def _end(self, number: int) -> None:
        del self.left[number]
        for name in self.tasks[number].resources:
            del self.held[name]
        self.times[number] = (self.begun[number], self.now)
        for follower in self.followers[number]:
            self.waits[follower] -= 1
            if self.waits[follower] == 0:
                self.ready.append(follower)
        self.ready.sort()
