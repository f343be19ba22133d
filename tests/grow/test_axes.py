import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grow.axes import NO_SPACE, ConnectionsAxis, Moves, Segment, axis_length, axis_moves, entry_units, reindex, select, spread

UNITS = {"a": 3, "b": 2}
CONCATENATED = (Segment("a", 2), Segment("b"))  # entries: a0 a0 a1 a1 a2 a2 b0 b1


def moves(**spaces: list[int]) -> Moves:
    return Moves({space: np.array(units, np.int64) for space, units in spaces.items()}, {})


def test_an_axis_is_as_long_as_its_segments_together() -> None:
    assert axis_length(CONCATENATED, UNITS) == 8
    assert axis_length(NO_SPACE, UNITS) == 0


def test_entries_know_their_segment_and_unit() -> None:
    segments, units = entry_units(CONCATENATED, UNITS)
    assert segments.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert units.tolist() == [0, 0, 1, 1, 2, 2, 0, 1]


def test_the_entries_of_a_unit_stay_neighbours_and_a_new_unit_has_no_old_entries() -> None:
    assert spread(np.array([2, -1, 0]), 3).tolist() == [6, 7, 8, -1, -1, -1, 0, 1, 2]


def test_segments_move_by_themselves() -> None:
    found = axis_moves(CONCATENATED, {"a": np.array([2, -1])}, UNITS)
    assert found is not None
    assert found.tolist() == [4, 5, -1, -1, 6, 7]
    assert axis_moves(CONCATENATED, {"c": np.array([0])}, UNITS) is None


def test_a_space_that_occurs_twice_in_an_axis_moves_in_both_places() -> None:
    found = axis_moves((Segment("b"), Segment("b")), {"b": np.array([1])}, UNITS)
    assert found is not None
    assert found.tolist() == [1, 3]


def test_selecting_from_nothing_gives_what_is_new() -> None:
    assert select(torch.zeros(0, 2), 0, np.array([-1, -1]), 7.0).tolist() == [[7, 7], [7, 7]]


def test_a_tensor_is_carried_along_all_its_axes() -> None:
    weight = torch.arange(16.0).reshape(2, 8)
    carried = reindex(weight, ((Segment("b"),), CONCATENATED), moves(a=[1], b=[1, 0, -1]), UNITS, fill=-5.0)
    # Rows b1, b0, new; columns a1 a1 | b1, b0, new.
    assert carried.tolist() == [[10, 11, 15, 14, -5], [2, 3, 7, 6, -5], [-5, -5, -5, -5, -5]]


def test_connections_are_gathered_from_an_old_to_new_index() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    edit = Moves({}, {"fc": np.array([2, -1, 0])})
    assert reindex(values, (ConnectionsAxis("fc"),), edit, UNITS).tolist() == [3, 0, 1]
    assert reindex(values, (ConnectionsAxis("other"),), edit, UNITS) is values


def test_what_no_edit_touches_is_the_same_tensor() -> None:
    kernel = torch.zeros(3, 3)
    assert reindex(kernel, (NO_SPACE, NO_SPACE), moves(a=[0]), UNITS) is kernel


@given(order=st.permutations(range(3)), dtype=st.sampled_from([torch.float32, torch.int64, torch.bool]))
def test_a_permutation_and_its_inverse_lose_no_bit(order: list[int], dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 2, (8, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    axes = (CONCATENATED, (Segment("a"),))
    there = reindex(tensor, axes, moves(a=list(order)), UNITS)
    back = reindex(there, axes, moves(a=np.argsort(order).tolist()), UNITS)
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("keep", [[0], [0, 2], [0, 1, 2]])
def test_adding_units_and_removing_them_again_loses_no_bit(keep: list[int]) -> None:
    tensor = torch.randn(8, generator=torch.Generator().manual_seed(0))
    kept = reindex(tensor, (CONCATENATED,), moves(a=keep), UNITS)
    units = {**UNITS, "a": len(keep)}
    grown = reindex(kept, (CONCATENATED,), moves(a=[*range(len(keep)), -1, -1]), units)
    again = reindex(grown, (CONCATENATED,), moves(a=list(range(len(keep)))), {**UNITS, "a": len(keep) + 2})
    assert torch.equal(again, kept)
