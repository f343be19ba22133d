import pytest
from hypothesis import given
from hypothesis import strategies as st

from grow.schedules import constant, cosine, cubic, linear

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
