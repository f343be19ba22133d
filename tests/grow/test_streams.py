"""Choosing from a stream is choosing from everything at once."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grow import patterns, streams
from grow.patterns import Scored
from grow.streams import Above, Best, Part, Stream
from tests.contracts.pattern import TOPOLOGY, candidates, total

PARTS = {"s1": np.array([0, 0, 1, 1, 2, 2]), "s2": np.array([0, 1, 2, 0, 1, 2])}


def stream_of(scored: Scored, size: int) -> Stream:
    """The candidates, so many at a time."""

    def stream() -> Iterator[Part]:
        for layer, (positions, scores) in scored.items():
            for start in range(0, len(positions), size):
                yield layer, positions[start : start + size], scores[start : start + size]

    return stream


def above(stream: Stream) -> Above:
    """The same, without what is not above the floor when its block comes."""

    def parts(floor: Callable[[], float], _: int) -> Iterator[Part]:
        for layer, positions, scores in stream():
            kept = ~(scores <= floor())  # NaN is not below anything
            yield layer, positions[kept], scores[kept]

    return parts


def lists(choice: patterns.Choice) -> dict[str, list[int]]:
    return {layer: positions.tolist() for layer, positions in choice.items()}


@settings(deadline=None)
@given(candidates(), st.floats(0, 1), st.integers(1, 40))
def test_the_highest_of_a_stream_are_the_highest_of_all(scored: Scored, share: float, size: int) -> None:
    count = round(share * total(scored))
    assert lists(streams.highest(above(stream_of(scored, size)), scored, count, total(scored))) == lists(patterns.highest(scored, count))


@settings(deadline=None)
@given(candidates(), st.floats(0, 1), st.integers(1, 40), st.sampled_from([0.0, 0.7, 2.5]))
def test_the_balanced_choice_of_a_stream_is_that_of_all(scored: Scored, share: float, size: int, price: float) -> None:
    count = round(share * total(scored))
    for ways in (None, np.array([[0, 1, 7], [1, 0, 2], [7, 2, 0.0]])):
        found = streams.highest_balanced(stream_of(scored, size), scored, TOPOLOGY, PARTS, price, count, ways)
        assert lists(found) == lists(patterns.highest_balanced(scored, TOPOLOGY, PARTS, price, count, ways))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50), st.integers(1, 9))
def test_the_median_of_a_stream_is_exact(values: list[float], size: int) -> None:
    scored = {"fc1": (np.arange(len(values)), np.array(values, np.float32))}
    expected = float(np.median(np.array(values, np.float32).astype(np.float64))) if values else 0.0
    assert streams.median(stream_of(scored, size)) == expected


def test_no_more_than_twice_what_is_wanted_is_held_and_no_more_than_that_kept() -> None:
    best, rng = Best(10), np.random.default_rng(0)
    for start in range(0, 1000, 50):
        best.show(0, np.arange(start, start + 50), rng.random(50))
        assert best._held <= 20
    best.highest(10)
    assert best._held == len(best._scores) == 10


def test_errors_are_those_of_the_patterns() -> None:
    scored = {"fc1": (np.array([0, 5]), np.zeros(2, np.float32))}
    with pytest.raises(ValueError, match="count is 3, but must be between 0 and the number of candidates, 2"):
        streams.highest(above(stream_of(scored, 1)), scored, 3, 2)
    wrong = stream_of({"fc1": (np.array([0]), np.array([np.nan], np.float32))}, 1)
    with pytest.raises(ValueError, match="layer 'fc1' has NaN"):
        streams.highest(above(wrong), scored, 1, 1)
    with pytest.raises(ValueError, match="layer 'fc1' has NaN"):
        streams.highest_balanced(wrong, scored, TOPOLOGY, PARTS, 1.0, 1)
    with pytest.raises(ValueError, match=r"price is -1\.0, but must be at least 0"):
        streams.highest_balanced(stream_of(scored, 1), scored, TOPOLOGY, PARTS, -1.0, 1)
