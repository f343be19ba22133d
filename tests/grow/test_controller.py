"""The controller is a pure function: it alternates removal and growth, and ends at the target."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grow.controller import Grow, Policy, Prune, Report, State, Stop, Train, begin, decide
from grow.schedules import constant, cosine, cubic


def follow(policy: Policy, connections: int, by_step: bool = False) -> list[tuple[int, Train | Prune | Grow | Stop, int]]:
    """Carry decisions out on a bare number of connections: (step, decision, connections after it)."""
    report, state, course = Report(0, connections, {}, unconnected=False, by_step=by_step), begin(policy), []
    while not course or not isinstance(course[-1][1], Stop):
        decision, state = decide(policy, report, state)
        match decision:
            case Train(until):
                assert until > report.step
                report = replace(report, step=until)
            case Prune(connections=count):
                report = replace(report, connections=report.connections - count)
            case Grow(connections=count):
                report = replace(report, connections=report.connections + count)
        course.append((report.step, decision, report.connections))
    return course


def policy(steps: int = 100, start: int = 1000, end: int = 100) -> Policy:
    return Policy(steps, 10, round(0.75 * steps), cubic(start, end, 0, round(0.6 * steps)), cosine(0.3, round(0.75 * steps)), {})


def test_growth_follows_removal_at_every_update_while_connections_are_replaced() -> None:
    kinds = [type(decision) for _, decision, _ in follow(policy(), 1000) if not isinstance(decision, Train)]
    assert kinds[:4] == [Prune, Grow, Prune, Grow]


def test_the_target_is_met_exactly_and_nothing_changes_after_the_last_update() -> None:
    course = follow(policy(), 1000)
    edits = [step for step, decision, _ in course if isinstance(decision, Prune | Grow)]
    assert course[-1][2] == 100
    assert max(edits) <= 75
    assert course[-1][0] == 100


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 40))
def test_growth_by_the_gradient_of_a_step_is_the_same_growth_one_step_later(interval: int, steps: int, last: int) -> None:
    """But for updates at every step, and at the end."""
    last = min(last, steps)
    plan = Policy(steps, interval, last, cubic(1000, 300, 0, max(1, last)), cosine(0.3, max(1, last)), {})
    alone, waiting = (
        [(step, decision) for step, decision, _ in follow(plan, 1000, by_step) if not isinstance(decision, Train)]
        for by_step in (False, True)
    )
    later = [(step + (isinstance(decision, Grow) and interval > 1 and step + 1 < steps), decision) for step, decision in alone]
    assert waiting == later


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_any_start_reaches_any_target(start: int, end: int) -> None:
    assert follow(policy(start=start, end=end), start)[-1][2] == end


def test_units_are_added_between_clearing_away_and_growing() -> None:
    grown = Policy(20, 10, 10, constant(50), constant(0.0), {"hidden": constant(8)})
    report, state = Report(10, 40, {"hidden": 5}, True, {"hidden": 1}), State("train", 10)
    decisions = []
    for _ in range(3):
        decision, state = decide(grown, report, state)
        decisions.append(decision)
        report = replace(report, unconnected=False)
    assert decisions[0] == Prune(0, True, "no path from the input or to the output is left")
    assert decisions[1] == Grow(0, {"hidden": 3}, "the schedule of units wants them")
    assert decisions[2] == Grow(10, {}, "50 connections wanted")


def test_no_more_units_are_added_than_there_are_connections_for() -> None:
    grown = Policy(20, 10, 10, constant(50), constant(0.0), {"hidden": constant(8)})
    decision, _ = decide(grown, Report(10, 40, {"hidden": 5}, False, {"hidden": 5}), State("units", 10))
    assert decision == Grow(0, {"hidden": 1}, "the schedule of units wants them")


def test_a_policy_without_updates_only_trains() -> None:
    still = Policy(7, 10, 0, constant(5), constant(0.0), {})
    assert [type(decision) for _, decision, _ in follow(still, 5)] == [Train, Stop]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("steps", (0, 1, 0)), ("update_interval", (10, 0, 5)), ("last_update", (10, 1, 11))],
)
def test_contradictions_are_named(name: str, arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .* but must be"):
        Policy(*arguments, constant(1), constant(0), {})
