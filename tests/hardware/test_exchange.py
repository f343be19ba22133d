"""Exchange plans: who sends what to whom, and how much. Values that cross between ranks are in test_ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hardware.execute.exchange import halo_plans


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
