from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grow.schedules import Schedule, constant, continuous, cosine, cubic, cyclic, iterative, linear, one_shot

values = st.floats(-10, 10)


@given(values, st.integers(0, 10_000))
def test_a_constant_never_changes(value: float, step: int) -> None:
    assert constant(value)(step) == value


def test_sparsity_on_the_cubic_of_zhu_and_gupta_as_in_the_paper() -> None:
    sparsity = cubic(0.0, 0.9, 0, 100)
    assert [sparsity(step) for step in (25, 50, 75)] == pytest.approx([0.5203125, 0.7875, 0.8859375])


@given(st.integers(-5, 205))
def test_density_and_sparsity_follow_the_same_cubic(step: int) -> None:
    assert cubic(1.0, 0.1, 10, 200)(step) == pytest.approx(1 - cubic(0.0, 0.9, 10, 200)(step))


def test_the_drop_fraction_of_rigl() -> None:
    drop = cosine(0.3, 100)
    assert [round(drop(step), 6) for step in (0, 25, 50, 75, 100, 101)] == [0.3, 0.256066, 0.15, 0.043934, 0.0, 0.0]


@pytest.mark.parametrize("schedule", [linear, cubic])
@given(start=values, end=values, begin=st.integers(0, 50), length=st.integers(0, 50), step=st.integers(0, 200))
def test_ramps_stay_between_their_ends_and_keep_them_outside(
    schedule, start: float, end: float, begin: int, length: int, step: int
) -> None:  # type: ignore[no-untyped-def]
    value = schedule(start, end, begin, begin + length)(step)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    if step < begin:
        assert value == pytest.approx(start)
    if step >= begin + length:
        assert value == end


def test_a_ramp_without_length_is_one_shot() -> None:
    assert [cubic(1.0, 0.1, 5, 5)(step) for step in (4, 5)] == [1.0, 0.1]


def test_contradicting_arguments_are_errors() -> None:
    for schedule in (linear, cubic):
        with pytest.raises(ValueError, match="end is 4, but must be at least begin, 5"):
            schedule(1.0, 0.1, 5, 4)
    with pytest.raises(ValueError, match="end is 0, but must be at least 1"):
        cosine(0.3, 0)
    with pytest.raises(ValueError, match="end is 4, but must be at least begin, 5"):
        cyclic(0.1, 1.0, 5, 4, 1)
    with pytest.raises(ValueError, match="end is 4, but must be at least begin, 5"):
        iterative(1.0, 0.1, 5, 4, 3)
    with pytest.raises(ValueError, match="cycles is 0, but must be at least 1"):
        cyclic(0.1, 1.0, 5, 9, 0)
    with pytest.raises(ValueError, match=r"low is 0.9, but must be at most high, 0.1; exchange them"):
        cyclic(0.9, 0.1, 5, 9, 1)


@pytest.mark.parametrize("shrinking", [lambda start, end: iterative(start, end, 0, 9, 3), lambda start, end: continuous(start, end, 0, 9)])
@pytest.mark.parametrize("end", [0.5, 0.0, -1.0])
def test_a_target_above_the_start_contradicts_pruning(shrinking: Callable[[float, float], Schedule], end: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^end_value is {end}, but must be above 0 and at most start_value, 0.4: \w+ only prunes; grow with"
    ):
        shrinking(0.4, end)


@given(values, values, st.integers(0, 50), st.integers(0, 100))
def test_one_shot_is_a_single_step(start: float, end: float, at: int, step: int) -> None:
    assert one_shot(start, end, at)(step) == (start if step < at else end)


def test_iterative_pruning_removes_the_same_share_in_every_round() -> None:
    # Frankle and Carbin: a fifth of what remains, ten rounds, 10.7 % are left (references, section 3).
    density = iterative(1.0, 0.8**10, 0, 90, 10)
    rounds = [density(step) for step in range(0, 91, 10)]
    assert [later / earlier for earlier, later in pairwise(rounds)] == pytest.approx([0.8] * 9)
    assert rounds[0] == pytest.approx(0.8)
    assert rounds[-1] == 0.8**10
    assert len({density(step) for step in range(100)}) == 10  # and nothing in between


def test_continuous_pruning_removes_the_same_share_at_every_step() -> None:
    density = continuous(1.0, 0.05, 10, 110)
    shares = [density(step + 1) / density(step) for step in range(10, 110)]
    assert shares == pytest.approx([0.05 ** (1 / 100)] * 100)
    assert (density(10), density(110)) == (1.0, 0.05)


def test_acdc_alternates_sparse_and_dense_and_ends_sparse() -> None:
    # Peste et al.: dense warm-up for 10 epochs, then 5-epoch phases, sparse from 85 on.
    density = cyclic(0.1, 1.0, 10, 90, 8)
    phases = [density(epoch) for epoch in range(0, 100, 5)]
    assert phases == [1.0, 1.0, *[0.1, 1.0] * 8, 0.1, 0.1]
