"""What no schedule of tasks can beat."""

from collections.abc import Sequence

from hardware.simulate import Task


def critical_path_s(tasks: Sequence[Task]) -> float:
    """The longest chain of tasks: no schedule is shorter."""
    ends: list[float] = []
    for task in tasks:
        ends.append(task.seconds + max((ends[number] for number in task.after), default=0.0))
    return max(ends, default=0.0)
