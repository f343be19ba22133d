"""Shards: every element has one owner, and what cannot be divided is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from grow.kernels import KernelCase
from grow.network import Network
from hardware.execute.exchange import Peers
from hardware.execute.moves import Halo, Moved
from hardware.shard import Shard, StrategyName, shard


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    built = Network(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), torch.zeros(1, 5))
    built.set_connections({"2": np.sort(rng.permutation(24)[:10])})
    return built


PARTS = {"0": np.array([0, 1, 1, 0, 2, 1]), "2": np.array([2, 0, 1, 2])}
LONELY = {"0": np.array([0, 1, 1, 0, 0, 1]), "2": np.array([2, 0, 0, 2])}
"""Rank 2 has no unit of the first space, rank 1 none of the second."""


def shards(choose: Callable[[KernelCase], str], parts: dict[str, np.ndarray]) -> list[Shard]:
    return [shard(network(), "units", Peers(rank, 3), parts=parts, choose=choose) for rank in range(3)]


@pytest.mark.parametrize("parts", [PARTS, LONELY])
@pytest.mark.parametrize("kernel", ["dense", "csr"])
def test_every_element_has_exactly_one_owner(kernel: str, parts: dict[str, np.ndarray]) -> None:
    whole = network()
    tensors = dict(whole.module.named_parameters()) | {n: b for n, b in whole.module.named_buffers() if n.startswith("3.")}
    owners = {name: np.zeros(tensor.numel(), int) for name, tensor in tensors.items()}
    for local in shards(lambda case: kernel, parts):
        mine = dict(local.module.named_parameters()) | dict(local.module.named_buffers())
        for name, held in local.held.items():
            if held.owned:
                positions = np.arange(tensors[held.name].numel()) if held.positions is None else held.positions.reshape(-1)
                real, values = positions >= 0, mine[name].detach().flatten()
                owners[held.name][positions[real]] += 1
                assert torch.equal(values[real], tensors[held.name].detach().flatten()[torch.from_numpy(positions[real])])
                assert not values[~real].any()  # a unit that is nowhere is zero
    for name, count in owners.items():
        exists = np.ones(count.shape, bool)
        if name == "2.weight":
            index = whole.layers["2"].index()
            assert index is not None
            exists = np.isin(np.arange(24), index)
        assert (count[exists] == 1).all(), name
        assert (count[~exists] <= 1).all(), name


def test_a_shard_shares_no_tensor_with_the_network() -> None:
    whole = network()
    for strategy, count in (("single", 1), ("data", 2)):
        local = shard(whole, strategy, Peers(0, count))  # type: ignore[arg-type]
        pointers = {tensor.data_ptr() for tensor in whole.module.state_dict().values()}
        assert not pointers & {tensor.data_ptr() for tensor in local.module.state_dict().values()}


def test_parts_that_do_not_talk_need_no_exchange() -> None:
    whole = network()
    rows, columns = np.divmod(np.arange(24), 6)
    whole.set_connections({"2": np.flatnonzero(PARTS["2"][rows] == PARTS["0"][columns])})
    local = shard(whole, "units", Peers(1, 3), parts=PARTS)
    assert not any(isinstance(module, Moved) and isinstance(module.move, Halo) for module in local.module.modules())


def test_kernels_are_chosen_for_the_local_case() -> None:
    cases: list[KernelCase] = []

    def choose(case: KernelCase) -> str:
        cases.append(case)
        return "csr"

    local = shard(network(), "units", Peers(1, 3), parts=PARTS, batch=7, choose=choose)
    held = next(held.positions for held in local.held.values() if held.name == "2.weight")
    assert [(case.rows, case.batch) for case in cases] == [(1, 7)]  # the others have all their connections: dense
    assert held is not None
    assert cases[0].density == len(held) / cases[0].columns


def refuse(module: nn.Module, strategy: StrategyName, parts: dict[str, np.ndarray] | None, message: str, ranks: int = 2) -> None:
    with pytest.raises(ValueError, match=message):
        shard(Network(module, torch.zeros(1, 5)), strategy, Peers(0, ranks), parts=parts)


def test_what_cannot_be_divided_is_refused() -> None:
    two = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    halves = {"0": np.array([0, 0, 1, 1])}
    refuse(two, "units", None, "parts is None, but must")
    refuse(two, "units", {"0": np.array([0, 1])}, "has 2 entries, but must have one in 0..1 per unit, 4 in all")
    refuse(two, "single", None, "strategy is 'single' with 2 ranks")
    refuse(two, "pipeline", None, "strategy is 'pipeline', but must be one of single, data, model, owt")
    refuse(
        two, {"input": "units", "0": "units", "output": "whole"}, halves, "layout of space 'input' is 'units', but must be whole or batch"
    )
    refuse(two, {"input": "batch", "0": "units", "output": "whole"}, halves, "layer '0' reads 'input' batch for units, but must")
    refuse(two, {"0": "units"}, halves, "must name exactly those of the network")


class Gated(nn.Module):
    """A softmax over units, and values that are joined along them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(8, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.three(torch.cat([torch.softmax(self.one(x), -1), self.two(x)], 1))


def test_what_meets_must_suit() -> None:
    parts = {space: np.array([0, 0, 1, 1]) for space in ("one", "two")}
    refuse(
        Gated(),
        {"input": "whole", "one": "units", "two": "units", "output": "whole"},
        parts,
        "space 'one' has units that .* a product mixes",
    )
    refuse(
        Gated(),
        {"input": "whole", "one": "batch", "two": "units", "output": "whole"},
        parts,
        "layer 'three' reads 'one' batch, 'two' units",
    )
