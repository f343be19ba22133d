from itertools import combinations

import numpy as np
import pytest

from hardware.simulate import Task, schedule
from tests.contracts.schedules import critical_path_s


def spans(tasks: list[Task], slowdown: float = 1.0) -> list[tuple[float, float]]:
    return [(span.begin_s, span.end_s) for span in schedule(tasks, slowdown).spans]


def work(seconds: float, *resources: str, after: tuple[int, ...] = (), disturbed_by: tuple[str, ...] = ()) -> Task:
    return Task("work", "forward", seconds, resources, after, disturbed_by)


def random_tasks(seed: int) -> list[Task]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(40):
        resources = tuple(f"r{name}" for name in rng.permutation(4)[: rng.integers(1, 3)])
        after = tuple(int(other) for other in np.unique(rng.integers(0, number, 2))) if number else ()
        found.append(work(float(rng.integers(0, 5)), *resources, after=after))
    return found


def test_one_resource_serves_one_task_at_a_time_the_first_first() -> None:
    assert spans([work(2, "x"), work(1, "x"), work(3, "y")]) == [(0, 2), (2, 3), (0, 3)]


def test_a_task_waits_for_those_before_it() -> None:
    assert spans([work(2, "x"), work(1, "y", after=(0,)), work(1, "x", after=(0, 1))]) == [(0, 2), (2, 3), (3, 4)]


def test_a_task_of_two_resources_waits_for_both() -> None:
    assert spans([work(2, "x"), work(3, "y"), work(1, "x", "y")]) == [(0, 2), (0, 3), (3, 4)]


def test_a_later_task_goes_first_where_it_alone_can() -> None:
    assert spans([work(2, "x"), work(1, "x", "y"), work(1, "y")]) == [(0, 2), (2, 3), (0, 1)]


def test_a_disturbed_task_is_slower_while_the_other_goes_on() -> None:
    # of 4 s of work, 1 s is done in the first 2 s, the other 3 s after them
    tasks = [work(4, "x", disturbed_by=("wire",)), work(2, "wire")]
    assert spans(tasks, 2.0) == [(0, 5), (0, 2)]
    assert spans(tasks) == [(0, 4), (0, 2)]


def test_tasks_that_take_no_time_keep_their_order() -> None:
    assert spans([work(0, "x"), work(0, "x", after=(0,)), work(1, "x", after=(1,))]) == [(0, 0), (0, 0), (0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_no_schedule_beats_its_bounds_or_the_tasks_one_by_one(seed: int) -> None:
    tasks = random_tasks(seed)
    line = schedule(tasks)
    loads = [sum(task.seconds for task in tasks if name in task.resources) for name in line.resources]
    assert max(critical_path_s(tasks), *loads) <= line.seconds <= sum(task.seconds for task in tasks)
    assert loads == pytest.approx([line.busy_s(name) for name in line.resources])


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_keeps_order_and_resources(seed: int) -> None:
    line = schedule(random_tasks(seed))
    for span in line.spans:
        assert all(line.spans[other].end_s <= span.begin_s for other in span.task.after)
    for one, other in combinations(line.spans, 2):
        if set(one.task.resources) & set(other.task.resources):
            assert one.end_s <= other.begin_s or other.end_s <= one.begin_s


def test_the_same_tasks_give_the_same_schedule() -> None:
    assert schedule(random_tasks(7), 1.5) == schedule(random_tasks(7), 1.5)


@pytest.mark.parametrize(
    ("tasks", "slowdown", "message"),
    [
        ([work(1, "x", after=(0,))], 1.0, "is number 0 and waits for 0, but must wait for earlier ones"),
        ([work(-1, "x")], 1.0, "seconds of task 'work' is -1, but must be finite and at least 0"),
        ([work(1, "x")], 0.5, "slowdown is 0.5, but must be at least 1"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(tasks: list[Task], slowdown: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(tasks, slowdown)
