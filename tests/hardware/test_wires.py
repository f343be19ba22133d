"""Wires between ranks: bytes arrive as they were sent, however many, and a rank that is gone is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest
import torch

from hardware.execute.wires import Crossing, Wires, pairs


@pytest.fixture
def two() -> Iterator[tuple[Wires, Wires]]:
    first, second = (Wires.of(mine, alone=False) for mine in pairs(2))
    yield first, second
    first.close()
    second.close()


def finish(wires: tuple[Wires, Wires], *crossings: Crossing) -> None:
    while not all(crossing.over() for crossing in crossings):
        for side in wires:
            side.advance()


@pytest.mark.parametrize("size", [1, 1000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.int64])
def test_tensors_cross_in_both_directions_at_once_whatever_their_size(two: tuple[Wires, Wires], size: int, dtype: torch.dtype) -> None:
    there, back = (torch.randint(0, 100, (size,), generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    came, returned = torch.zeros_like(there), torch.zeros_like(back)
    finish(two, two[0].post([(there, 1)], [(returned, 1)]), two[1].post([(back, 0)], [(came, 0)]))
    assert torch.equal(came, there)
    assert torch.equal(returned, back)


def test_messages_under_way_together_are_waited_for_in_any_order(two: tuple[Wires, Wires]) -> None:
    for order in permutations(range(3)):
        sent = [torch.full((number + 1, 2), float(number)) for number in range(3)]
        taken = [torch.zeros(number + 1, 2) for number in range(3)]
        for tensor in sent:
            two[0].post([(tensor, 1)], [])
        under_way = [two[1].post([], [(tensor, 0)]) for tensor in taken]
        for number in order:
            under_way[number].wait()
            assert torch.equal(taken[number], sent[number])


@pytest.mark.parametrize("alone", [True, False])
def test_who_waits_for_a_rank_that_is_gone_is_told_so(alone: bool) -> None:
    waiting, gone = (Wires.of(mine, alone) for mine in pairs(2))
    crossing = waiting.post([], [(torch.zeros(3), 1)])
    gone.close()
    with pytest.raises(RuntimeError, match="Connection closed by rank 1"):
        crossing.wait()
    waiting.close()
