"""Exchange plans: who sends what to whom, and how much."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardware.execute.exchange import Peers, halo_plans
from hardware.execute.moves import Halo
from hardware.execute.ranks import Rank, run_ranks


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    ranks, entries = draw(st.integers(2, 4)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    return ranks, rng.integers(-1, ranks, entries), rng.random((ranks, entries)) < draw(st.sampled_from([0.0, 0.3, 1.0]))


@given(cases(), st.sampled_from([1, 4]))
def test_every_rank_receives_what_it_needs_and_nothing_else(case: tuple[int, np.ndarray, np.ndarray], multiple: int) -> None:
    ranks, owner, needed = case
    plans, held = halo_plans(owner, [np.flatnonzero(row) for row in needed], multiple)
    for rank in range(ranks):
        own = np.flatnonzero((owner == rank) | (owner < 0))
        halo = [np.arange(0)]
        for source in range(ranks):
            sent = np.flatnonzero((owner == source) | (owner < 0))[plans[source].sends[rank].numpy()]
            assert len(sent) == plans[rank].receives[source]
            halo.append(sent)
        remote = np.flatnonzero(needed[rank] & (owner >= 0) & (owner != rank))
        assert sorted(np.concatenate(halo)) == remote.tolist()
        assert held[rank].tolist() == [*own, *np.concatenate(halo), *[-1] * plans[rank].padding]
        assert not len(remote) or len(held[rank]) % multiple == 0


def test_the_whole_traffic_is_the_communication_volume() -> None:
    # parts a:0 b:0 c:1 d:2; readers abc, cd, ab, abcd: unit j is sent to every other part that reads it
    owner = np.array([0, 0, 1, 2])
    nets = [{0, 1}, {1, 2}, {0}, {0, 1, 2}]  # parts that read units 0..3
    plans, _ = halo_plans(owner, [np.array([unit for unit, parts in enumerate(nets) if rank in parts]) for rank in range(3)])
    assert sum(sum(plan.receives) for plan in plans) == 1 + 2 + 1 + 2


def crossed(rank: Rank) -> list[tuple[Tensor, bool, Tensor, int]]:
    """Values behind a halo exchange and whether they kept their order in memory, gradients, and bytes: row-major and feature-major."""
    peers, found = Peers(rank.number, rank.count), []
    plans, _ = halo_plans(np.array([0, 0, 0, 1, 1]), [np.array([0, 1, 2, 4]), np.array([0, 2, 3, 4])], multiple=3)
    halo = Halo(plans[rank.number], peers)
    for flip in (False, True):
        x = 10.0 * rank.number + torch.arange(4 * halo.plan.own).view(4, -1) / 8
        x = x.t().contiguous().t() if flip else x
        joined = halo.forward(x)
        weights = torch.arange(joined.numel(), dtype=x.dtype).view(joined.shape)
        kept = (joined.t() if flip else joined).is_contiguous()
        found.append((joined, kept, halo.backward(weights.t().contiguous().t() if flip else weights), peers.halo_bytes))
    return found


def test_values_cross_alike_however_they_lie_in_memory() -> None:
    (rows, rows_kept, of_rows, sent), (lines, lines_kept, of_lines, more) = run_ranks(crossed, ranks=2)[0]
    assert rows_kept
    assert lines_kept
    assert torch.equal(rows, lines)
    assert torch.equal(of_rows, of_lines)
    assert rows[:, 3].tolist() == [10 + (2 * sample + 1) / 8 for sample in range(4)]  # unit 4, the second one of rank 1
    assert rows[:, 4:].eq(0).all()
    # unit 0 is column 0 here and column 2 on rank 1, unit 1 is read here alone
    assert of_rows.tolist() == [[6 * s + 0 + 6 * s + 2, 6 * s + 1, 6 * s + 2 + 6 * s + 3] for s in range(4)]
    assert (sent, more) == (4 * 4 * 3, 2 * 4 * 4 * 3)  # 2 entries there, the gradient of 1 back
