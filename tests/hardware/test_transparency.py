"""Transparency: a network trained on k ranks is the network trained by one process, for every strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grow import optim
from grow.axes import IntArray
from grow.network import Network
from grow.topology import Topology
from hardware.execute.exchange import Peers
from hardware.execute.ranks import Rank, run_ranks
from hardware.shard import StrategyName, by_density, shard

STEPS = 20


@dataclass(frozen=True)
class Case:
    network: Network
    parts: Mapping[str, IntArray]
    inputs: Tensor
    targets: Tensor
    optimizer: optim.Name


@dataclass(frozen=True)
class Outcome:
    loss: list[float]
    gradients: dict[str, Tensor]  # of the first step
    weights: dict[str, Tensor]  # after the last, with buffers
    state: dict[str, dict[str, Tensor]]
    halo_bytes: int  # of all ranks, in one step


class Residual(nn.Module):
    """Two layers that are added, layers that read the same values, and values joined along the units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 7)
        self.last = nn.Linear(16, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        first = torch.relu(self.first(x))
        second = first + torch.tanh(self.second(first))
        return self.last(torch.cat([second, torch.relu(self.third(first))], 1))


# No bias before a batch norm: its gradient is zero but for rounding, which Adam would blow up to whole steps.


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4)
    )


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )


def wide() -> nn.Module:
    """Wide enough for the halo to be padded."""
    return nn.Sequential(nn.Linear(6, 520), nn.ReLU(), nn.Linear(520, 9), nn.ReLU(), nn.Linear(9, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "lenet": (lenet, (1, 10, 10)),
    "residual": (Residual, (6,)),
    "wide": (wide, (6,)),
}


def make_case(
    name: str, ranks: int, dtype: torch.dtype, optimizer: optim.Name, density: float, compressed: bool = False, batch: int = 11
) -> Case:
    """Random connections, random uneven parts; in the first hidden space part 0 reads none but its own units (an empty halo)."""
    torch.manual_seed(1)
    rng = np.random.default_rng(3)
    build, shape = NETWORKS[name]
    network = Network(build().to(dtype), torch.zeros(1, *shape, dtype=dtype))
    topology = network.topology
    parts = {space.name: rng.permutation(np.r_[np.arange(ranks), rng.integers(0, ranks, space.units - ranks)]) for space in topology.hidden}
    index = {}
    for layer in topology.layers:
        keep = np.sort(rng.permutation(layer.possible)[: round(density * layer.possible)])
        if layer.source[0].space == topology.hidden[0].name and layer.target_space in parts and len(layer.source) == 1:
            _, sources, targets = topology.connected_units(layer, keep)
            keep = keep[(parts[layer.target_space][targets] != 0) | (parts[layer.source[0].space][sources] == 0)]
        index[layer.layer] = keep if density < 1 else None
    network.set_connections(index)
    if compressed:
        network.use_kernels(always_csr, batch)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(batch, *shape, generator=generator).to(dtype)
    return Case(network, parts, inputs, torch.randint(0, 4, (batch,), generator=generator), optimizer)


def train(peers: Peers, case: Case, strategy: StrategyName) -> Outcome:
    local = shard(
        case.network,
        strategy,
        peers,
        parts=case.parts,
        batch=len(case.targets),
        choose=by_density if case.optimizer == "sgd" else always_csr,
    )
    local.module.train()
    optimizer = optim.make(case.optimizer, list(local.module.parameters()), 0.05, weight_decay=1e-3)
    losses, gradients, halo_bytes = [], {}, 0
    for step in range(STEPS):
        share = local.step(optimizer, case.inputs, case.targets, functional.cross_entropy)
        if step == 0:
            gradients = local.gather({name: p.grad for name, p in local.module.named_parameters() if p.grad is not None})
            handed = peers.sum(torch.tensor(peers.halo_bytes, dtype=torch.float64)) if peers.count > 1 else torch.tensor(0.0)
            halo_bytes = int(handed)
        losses.append(float(peers.sum(share) if strategy == "data" and peers.count > 1 else share))
    buffers = {name: buffer for name, buffer in local.module.named_buffers() if name in local.held}
    weights = local.gather({**dict(local.module.named_parameters()), **buffers})
    return Outcome(losses, gradients, weights, local.gather_state(optimizer), halo_bytes)


def always_csr(case: object) -> str:
    return "csr"


def train_all(rank: Rank, cases: list[tuple[Case, StrategyName]]) -> list[Outcome]:
    peers = Peers(rank.number, rank.count)
    outcomes = []
    for case, strategy in cases:
        peers.halo_bytes = peers.sum_bytes = 0
        outcomes.append(train(peers, case, strategy))
    return outcomes


def volume_bytes(topology: Topology, parts: Mapping[str, IntArray], batch: int, element: int) -> int:
    """2 x element size x batch x values per unit x communication volume, counted unit by unit."""
    total = 0
    for space in topology.hidden:
        readers = [layer for layer in topology.consumers(space.name) if layer.target_space in parts]
        for unit in range(space.units):
            remote, values = set(), 0
            for layer in readers:
                segments, sources, targets = topology.connected_units(layer, layer.positions())
                spaces = np.array([segment.space == space.name for segment in layer.source])
                reads = spaces[segments] & (sources == unit)
                remote |= set(parts[layer.target_space][targets[reads]].tolist()) - {int(parts[space.name][unit])}
                values = layer.source_values * next(s.repeat for s in layer.source if s.space == space.name)
            total += 2 * element * batch * values * len(remote)
    return total


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference of an element in float64; the norm of the difference against the norm in float32."""
    if one.dtype == torch.float64:
        return float((one - other).abs().max()) / 1e-9
    return float((one - other).float().norm() / other.float().norm().clamp(min=1e-6)) / 1e-5


def check(ranks: int, cases: list[Case]) -> None:
    plan: list[tuple[Case, StrategyName]] = [(case, strategy) for case in cases for strategy in ("units", "data")]
    outcomes = run_ranks(train_all, plan, ranks=ranks)
    references = {id(case): train(Peers(0, 1), case, "single") for case in cases}
    for number, (case, strategy) in enumerate(plan):
        expected = references[id(case)]
        for rank in range(ranks):
            found = outcomes[rank][number]
            what = f"case {number}, {strategy}, rank {rank}"
            losses = [torch.tensor(outcome.loss, dtype=case.inputs.dtype) for outcome in (found, expected)]
            assert difference(*losses) < 1, what
            for mine, theirs in ((found.gradients, expected.gradients), (found.weights, expected.weights)):
                assert mine.keys() == theirs.keys(), what
                for name in mine:
                    assert difference(mine[name], theirs[name]) < 1, f"{what}, {name}"
            assert found.state.keys() == expected.state.keys()
            for name, state in expected.state.items():
                assert all(difference(found.state[name][key], value) < 1 for key, value in state.items()), f"{what}, state of {name}"
            handed = volume_bytes(case.network.topology, case.parts, len(case.targets), case.inputs.element_size())
            assert found.halo_bytes == (handed if strategy == "units" else 0), what
        for name in expected.weights:  # replicas stay bit for bit the same
            assert torch.equal(outcomes[0][number].weights[name], outcomes[-1][number].weights[name])


def test_two_ranks_train_as_one_process_does() -> None:
    double, single = torch.float64, torch.float32
    check(
        2,
        [
            make_case("mlp", 2, double, "sgd", 0.5),
            make_case("mlp", 2, double, "adam", 0.5, compressed=True),
            make_case("mlp", 2, double, "sgd", 1.0),
            make_case("lenet", 2, double, "sgd", 0.6),
            make_case("lenet", 2, double, "adamw", 0.6),
            make_case("residual", 2, double, "sgd", 0.5),
            make_case("wide", 2, double, "adam", 0.02),
            make_case("wide", 2, double, "sgd", 0.5),
            make_case("wide", 2, double, "sgd", 1.0),
            make_case("mlp", 2, single, "sgd", 0.5),
            make_case("lenet", 2, single, "sgd", 0.6),
        ],
    )


def test_three_ranks_train_as_one_process_does() -> None:
    cases = [make_case(name, 3, torch.float64, "sgd", 0.5) for name in ("mlp", "lenet", "residual")]
    check(3, [*cases, make_case("lenet", 3, torch.float64, "sgd", 0.5, batch=2)])  # under data one rank has no sample


def test_one_process_trains_the_shard_as_the_network() -> None:
    case = make_case("lenet", 2, torch.float64, "sgd", 0.6)
    found = train(Peers(0, 1), case, "single")
    network = case.network
    optimizer = optim.make("sgd", network.parameters(), 0.05, weight_decay=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(case.inputs), case.targets).backward()
        optimizer.step()
    for name, parameter in network.module.named_parameters():
        assert found.weights[name].flatten().tolist() == pytest.approx(parameter.flatten().tolist(), abs=1e-12)
