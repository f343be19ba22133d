"""Transparency: a network trained on k ranks is the network trained by one process, for every strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Protocol, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from grow import optim
from grow.axes import IntArray
from grow.network import Network
from grow.topology import Topology
from hardware import layout
from hardware.execute.exchange import Peers
from hardware.execute.ranks import Kind, Rank, run_ranks, settle_gloo
from hardware.layout import Strategy
from hardware.partition import Partition, bytes_per_step, communication_volume, crossing_units
from hardware.shard import StrategyName, by_density, shard
from hardware.transitions import TABLE, norm_sums, parameter_sums, transitions
from hardware.workload import Workload
from tests.contracts.modules import NETWORKS as START_NETWORKS
from tests.contracts.modules import SAMPLES
from tests.contracts.replicas import check_replicas, copies
from tests.elsewhere import elsewhere

STEPS, FEW = 20, 4
"""Steps under the strategies of `NAMED` where a network is first trained so in a precision, and otherwise.

Those that are slow train for all steps under every name, and under the first other layouts of every network; and under all layouts,
of which the fast ones have those of the cases that have nothing else (`PAIRS` among them) and the first of every other case.
"""
NAMED = ("model", "data")


@dataclass(frozen=True)
class Case:
    """What ranks train. They make it for themselves of its sketch, which alone is sent."""

    sketch: Sketch
    network: Network
    parts: Mapping[str, IntArray]
    inputs: Tensor
    targets: Tensor
    strategies: tuple[StrategyName, ...]
    optimizer: optim.Name = "sgd"
    overlap: bool = False
    drifting: bool = False  # the last rank's parameters end up one rounding off


class Sketch(Protocol):
    """What a case is made of: the same in every process."""

    @property
    def name(self) -> str: ...

    @property
    def ranks(self) -> int: ...

    def case(self) -> Case: ...


@dataclass(frozen=True)
class Outcome:
    loss: list[float]
    gradients: dict[str, Tensor]  # of the first step
    weights: dict[str, Tensor]  # after the last, with buffers
    state: dict[str, dict[str, Tensor]]
    copies: dict[str, Tensor]  # what this rank itself holds
    handed: dict[str, int]  # bytes of this rank in one step
    stored: dict[str, int]  # values of every layer's weight
    samples: tuple[int, int]  # of which this rank has the logits
    logits: Tensor  # after the last step, in evaluation mode
    inferring: int  # halo bytes that inference hands in on this rank


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


class Forked(nn.Module):
    """Values that are read at several places: by a residual branch and its sum, by two layers of two spaces, whose results are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.back = nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 9)
        self.side, self.again = nn.Linear(9, 7), nn.Linear(9, 7)
        self.tail, self.last = nn.Linear(7, 5), nn.Linear(5, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        first = torch.relu(self.first(x))
        residual = first + torch.tanh(self.back(torch.relu(self.middle(first))))
        joined = torch.relu(self.side(first)) + self.again(residual)
        return self.last(torch.relu(self.tail(joined)))


PAIRS = ("wwww", "wbbb", "wuuu", "bwbu", "bbuw", "buwb", "uwub", "ubwu", "uubw")
"""Layouts of four spaces in which any two spaces have all nine pairs of layouts: Taguchi's orthogonal array L9."""


class Dense(nn.Module):
    """Every layer reads all that came before, joined along the units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(12, 6), nn.Linear(18, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        first = torch.relu(self.first(x))
        second = torch.cat([first, torch.tanh(self.second(first))], 1)
        return self.last(torch.cat([second, torch.relu(self.third(second))], 1))


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


def normed() -> nn.Module:
    """Norms across the units, with tensors and without, and a third over feature maps."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.LayerNorm([6, 2, 2]), nn.ReLU(), nn.Flatten(), nn.Linear(24, 9), nn.LayerNorm(9), nn.Tanh(),
        nn.Linear(9, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4),
    )  # fmt: skip


def grouped() -> nn.Module:
    """A group norm, channels that are filtered by themselves, an average over positions."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4),
    )  # fmt: skip


def dropping() -> nn.Module:
    """Feature maps, flattened entries and units are dropped."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.4), nn.Linear(20, 9), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip


class Attending(nn.Module):
    """Learned positions, an encoder layer that drops attention, sums and units, the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.positions = nn.Linear(3, 6), nn.Parameter(torch.randn(1, 4, 6))
        self.encoder = nn.TransformerEncoderLayer(6, 3, 7, 0.2, batch_first=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.last(self.encoder(self.first(x) + self.positions).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "lenet": (lenet, (1, 10, 10)),
    "residual": (Residual, (6,)),
    "forked": (Forked, (6,)),
    "dense": (Dense, (6,)),
    "wide": (wide, (6,)),
    "normed": (normed, (2, 4, 4)),
    "grouped": (grouped, (2, 4, 4)),
    "dropping": (dropping, (2, 4, 4)),
    "attending": (Attending, (4, 3)),
}


Planned: TypeAlias = tuple[Sketch, int, int]
"""A sketch, which of its strategies, and for how many steps."""


@dataclass(frozen=True)
class Drawn:
    """Random connections, random uneven parts, of which one may be ``empty``; in the first hidden space part 0 reads only its own units.

    A strategy is a name, or the initials of the layouts of the hidden spaces, in their order.
    """

    name: str
    ranks: int
    double: bool
    optimizer: optim.Name
    density: float
    strategies: tuple[str, ...] = NAMED
    compressed: bool = False
    batch: int = 11
    empty: int | None = None
    overlap: bool = False
    drifting: bool = False

    def case(self) -> Case:
        dtype = torch.float64 if self.double else torch.float32
        torch.manual_seed(1)
        rng = np.random.default_rng(3)
        build, shape = NETWORKS[self.name]
        network = Network(build().to(dtype), torch.zeros(1, *shape, dtype=dtype))
        parts = self._parts(network.topology, rng)
        network.set_connections(self._connections(network.topology, parts, rng))
        if self.compressed:
            network.use_kernels(always_csr, self.batch)
        generator = torch.Generator().manual_seed(2)
        inputs = torch.randn(self.batch, *shape, generator=generator).to(dtype)
        targets = torch.randint(0, 4, (self.batch,), generator=generator)
        strategies = tuple(spelt_out(network, strategy) for strategy in self.strategies)
        return Case(self, network, parts, inputs, targets, strategies, self.optimizer, self.overlap, self.drifting)

    def _parts(self, topology: Topology, rng: np.random.Generator) -> dict[str, IntArray]:
        ranks, empty = self.ranks, self.empty
        parts = {
            space.name: rng.permutation(np.r_[np.arange(ranks), rng.integers(0, ranks, max(space.units - ranks, 0))])[: space.units]
            for space in topology.hidden
        }
        if empty is None:
            return parts
        return {
            space: np.where(part == empty, (part + 1) % ranks, part) if n % 2 == 0 else part
            for n, (space, part) in enumerate(parts.items())
        }

    def _connections(self, topology: Topology, parts: Mapping[str, IntArray], rng: np.random.Generator) -> dict[str, IntArray | None]:
        index: dict[str, IntArray | None] = {}
        for layer in topology.layers:
            keep = np.sort(rng.permutation(layer.possible)[: round(self.density * layer.possible)])
            if layer.reads[0].space == topology.hidden[0].name and layer.target_space in parts and len(layer.source) == 1:
                _, sources, targets = topology.connected_units(layer, keep)
                keep = keep[(parts[layer.target_space][targets] != 0) | (parts[layer.source[0].space][sources] == 0)]
            index[layer.layer] = keep if self.density < 1 else None
        return index


@cache
def made(sketch: Sketch) -> Case:
    """Once in every process."""
    return sketch.case()


def make_case(*settings: Any, **others: Any) -> Case:
    """The case of a `Drawn`."""
    return made(Drawn(*settings, **others))


def spelt_out(network: Network, strategy: StrategyName) -> StrategyName:
    """``"ubw"``: the hidden spaces are units, batch, whole; inputs and outputs are as suits them."""
    if not isinstance(strategy, str) or set(strategy) - set("ubw"):
        return strategy
    work = Workload.of(network.topology)
    initials: dict[str, layout.Layout] = {"u": "units", "b": "batch", "w": "whole"}
    return layout.completed(work, {space: initials[letter] for space, letter in zip(work.hidden, strategy, strict=True)})


def train(peers: Peers, case: Case, strategy: StrategyName, steps: int, device: torch.device | None = None) -> Outcome:
    local = shard(
        case.network,
        strategy,
        peers,
        parts=case.parts,
        batch=len(case.targets),
        choose=by_density if case.optimizer == "sgd" else always_csr,
        device=device,
        seed=4,
        overlap=case.overlap,
    )
    local.module.train()
    optimizer = optim.make(case.optimizer, list(local.module.parameters()), 0.05, weight_decay=1e-3)
    losses, gradients, handed = [], {}, {}
    inputs, targets = case.inputs.to(device), case.targets.to(device)
    for step in range(steps):
        peers.forget()
        share = local.step(optimizer, inputs, targets, functional.cross_entropy)
        if step == 0:
            handed = {"halo": peers.halo_bytes, "exchange": peers.exchange_bytes, "gather": peers.gather_bytes, "sum": peers.sum_bytes}
            gradients = local.gather({name: p.grad for name, p in local.module.named_parameters() if p.grad is not None})
        losses.append(float(local.total(share)))
    if case.drifting and peers.rank == peers.count - 1:
        drift(local.module)
    buffers = {name: buffer for name, buffer in local.module.named_buffers() if name in local.held}
    weights = local.gather({**dict(local.module.named_parameters()), **buffers})
    stored = {name.removesuffix(".weight"): p.numel() for name, p in local.module.named_parameters() if name.endswith(".weight")}
    state = {name: {key: value.cpu() for key, value in found.items()} for name, found in local.gather_state(optimizer).items()}
    peers.forget()
    logits = local.infer(inputs).cpu()
    own = local.own_samples(len(targets))
    found = ((own.start, own.stop), logits, peers.halo_bytes)
    return Outcome(losses, _on_cpu(gradients), _on_cpu(weights), state, copies(local, optimizer), handed, stored, *found)


@torch.no_grad()
def drift(module: nn.Module) -> None:
    """Every parameter becomes the next greater number."""
    for parameter in module.parameters():
        parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def always_csr(case: object) -> str:
    return "csr"


def train_all(rank: Rank, plan: list[Planned]) -> list[Outcome | None]:
    """Every sketch under one of its strategies, for so many steps, on as many of the ranks as it is for; None on the others."""
    narrow = sorted({sketch.ranks for sketch, _, _ in plan} - {rank.count})
    groups = {count: distributed.new_group(list(range(count))) for count in narrow}
    settle_gloo()
    found: list[Outcome | None] = []
    for sketch, number, steps in plan:
        taking_part = rank.number < sketch.ranks
        peers = Peers(rank.number, sketch.ranks, groups.get(sketch.ranks)) if taking_part else None
        found.append(None if peers is None else train(peers, made(sketch), made(sketch).strategies[number], steps, rank.device))
    return found


def train_all_elsewhere(rank: Rank, plan: list[Planned]) -> list[Outcome | None]:
    """The same on a device that is not the CPU."""
    with elsewhere() as device:
        return train_all(replace(rank, device=device), plan)


def handed_bytes(case: Case, layouts: Strategy, ranks: int, stored: Mapping[str, int]) -> dict[str, int]:
    """What all ranks hand in, by the table of transitions."""
    work, element, batch = Workload.of_network(case.network), case.inputs.element_size(), len(case.targets)
    found = {"halo": 0, "exchange": 0, "gather": 0, "sum": 0}
    for transition in transitions(work, layouts, Partition(case.parts, ranks), ranks, batch, element):
        for move in (transition.forward, transition.backward):
            kind = "halo" if (transition.source, transition.target) == ("units", "units") else move.collective
            found[kind if kind in found else "sum"] += move.bytes
    found["sum"] += sum(total.move.bytes for total in parameter_sums(work, layouts, ranks, element, stored))
    found["sum"] += sum(move.move.bytes for pair in norm_sums(work, layouts, ranks, batch, element) for move in pair)
    return found


def forward_halo_bytes(case: Case, layouts: Strategy, ranks: int) -> int:
    """What all ranks hand to units -> units exchanges on the way forward."""
    work, element, batch = Workload.of_network(case.network), case.inputs.element_size(), len(case.targets)
    found = transitions(work, layouts, Partition(case.parts, ranks), ranks, batch, element)
    return sum(transition.forward.bytes for transition in found if (transition.source, transition.target) == ("units", "units"))


def volume_bytes(topology: Topology, parts: Mapping[str, IntArray], batch: int, element: int) -> int:
    """2 x element size x batch x values per unit x communication volume, counted unit by unit and value by value."""
    total = 0
    for space in topology.hidden:
        readers = [layer for layer in topology.consumers(space.name) if layer.target_space in parts]
        for value, unit in product({layer.value for layer in readers}, range(space.units)):
            remote, values = set(), 0
            for layer in (layer for layer in readers if layer.value == value):
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


@dataclass(frozen=True)
class Trained:
    """A case under one of its strategies, after so many steps, and what its ranks found."""

    case: Case
    place: int
    steps: int
    outcomes: list[Outcome]


Target: TypeAlias = Callable[[Rank, list[Planned]], list[Outcome | None]]


def trained(cases: list[Case], kind: Kind = "cpu", target: Target = train_all, *, thorough: bool = True) -> list[Trained]:
    """All cases, on one start of as many ranks as the widest has."""
    lengths = zip(cases, steps_of(cases, thorough=thorough), strict=True)
    plan = [(case, place, steps) for case, all_steps in lengths for place, steps in enumerate(all_steps) if steps]
    ranks = max(case.sketch.ranks for case in cases)
    found = run_ranks(target, [(case.sketch, place, steps) for case, place, steps in plan], ranks=ranks, kind=kind)
    outcomes = [[outcome for outcome in of_ranks if outcome is not None] for of_ranks in zip(*found, strict=True)]
    return [Trained(*planned, of_ranks) for planned, of_ranks in zip(plan, outcomes, strict=True)]


def check(found: list[Trained]) -> None:
    references: dict[tuple[int, int], Outcome] = {}
    for number, one in enumerate(found):
        case, steps, outcomes, ranks = one.case, one.steps, one.outcomes, one.case.sketch.ranks
        strategy = case.strategies[one.place]
        assert len(outcomes) == ranks
        if (id(case), steps) not in references:
            references[id(case), steps] = train(Peers(0, 1), case, "single", steps)
        expected = references[id(case), steps]
        for rank in range(ranks):
            check_outcome(outcomes[rank], expected, case.inputs.dtype, f"case {number}, {strategy}, rank {rank}")
        held = [outcome.copies for outcome in outcomes]
        with pytest.raises(AssertionError, match="ranks hold different copies") if case.drifting else nullcontext():
            shared = check_replicas(held, f"case {number}, {strategy}")
            assert shared or strategy != "data"
        work = Workload.of_network(case.network)
        layouts = layout.strategy(work, strategy) if isinstance(strategy, str) else strategy
        handed = {kind: sum(outcome.handed[kind] for outcome in outcomes) for kind in ("halo", "exchange", "gather", "sum")}
        assert handed == handed_bytes(case, layouts, ranks, outcomes[0].stored), f"case {number}, {strategy}"
        assert sum(outcome.inferring for outcome in outcomes) == forward_halo_bytes(case, layouts, ranks), f"case {number}, {strategy}"


def steps_of(cases: Sequence[Case], *, thorough: bool) -> Iterator[list[int]]:
    """How many steps every strategy of every case is trained for; 0: not at all."""
    seen: set[tuple[object, ...]] = set()
    for case in cases:
        steps, unnamed = list[int](), 0
        mixed = not any(isinstance(strategy, str) for strategy in case.strategies)  # what the case is there for
        for strategy in case.strategies:
            name = strategy if isinstance(strategy, str) else None
            kind = (case.sketch.name, case.sketch.ranks, name, case.inputs.dtype)
            first = kind not in seen
            full = first or name is not None if thorough else first and name in NAMED
            unnamed += name is None
            steps.append(STEPS if full else FEW if thorough or mixed or unnamed <= 1 else 0)
            seen.add(kind)
        yield steps


def check_outcome(found: Outcome, expected: Outcome, dtype: torch.dtype, what: str) -> None:
    losses = [torch.tensor(outcome.loss, dtype=dtype) for outcome in (found, expected)]
    assert difference(*losses) < 1, what
    for mine, theirs in ((found.gradients, expected.gradients), (found.weights, expected.weights)):
        assert mine.keys() == theirs.keys(), what
        for name in mine:
            assert alike(name, mine[name], theirs[name]), f"{what}, {name}"
    if found.logits.numel():
        assert difference(found.logits, expected.logits[slice(*found.samples)]) < 1, f"{what}, logits"
    assert found.state.keys() == expected.state.keys()
    for name, state in expected.state.items():
        assert all(alike(name, found.state[name][key], value) for key, value in state.items()), f"{what}, state of {name}"


def alike(name: str, one: Tensor, other: Tensor) -> bool:
    """Whether gradients, values or state of a parameter differ by rounding alone."""
    if one.dtype == torch.float32 and name.endswith(WITHOUT_GRADIENT):
        return bool(max(one.abs().max(), other.abs().max()) < 1e-7)
    return difference(one, other) < 1


WITHOUT_GRADIENT = "attention.k.bias"
"""What a key's bias adds to all scores of a query, the softmax takes out: it begins at zero and moves by rounding alone, without a norm."""

DOUBLE, SINGLE = True, False


def two_rank_cases() -> list[Case]:
    return [
        make_case("mlp", 2, DOUBLE, "sgd", 0.5, (*NAMED, "ubu", "bub", "wub", "ubw", "bwu", "wbw")),
        make_case("mlp", 2, DOUBLE, "adam", 0.5, (*NAMED, "bwb"), compressed=True),
        make_case("mlp", 2, DOUBLE, "sgd", 1.0, ("model",)),
        make_case("mlp", 2, DOUBLE, "sgd", 1.0, ("data",), drifting=True),  # which all but the comparison of copies lets pass
        make_case("mlp", 2, DOUBLE, "sgd", 0.5, ("uuu", "bub", "ubu"), empty=1),
        make_case("lenet", 2, DOUBLE, "sgd", 0.6, (*NAMED, "owt", "ubw", "ubu", "wub")),
        make_case("lenet", 2, DOUBLE, "adamw", 0.6),
        make_case("lenet", 2, DOUBLE, "sgd", 0.6, ("uuu", "bbu"), empty=0),
        make_case("residual", 2, DOUBLE, "sgd", 0.5),
        make_case("forked", 2, DOUBLE, "sgd", 0.6, PAIRS[1:]),
        make_case("dense", 2, DOUBLE, "sgd", 0.6, ("model",)),
        make_case("wide", 2, DOUBLE, "adam", 0.02),
        make_case("wide", 2, DOUBLE, "sgd", 0.5, ("model", "bu", "uw")),
        make_case("wide", 2, DOUBLE, "sgd", 1.0, ("model",)),
        make_case("normed", 2, DOUBLE, "sgd", 0.6, (*NAMED, "owt", "ubu", "uwu")),
        make_case("grouped", 2, DOUBLE, "sgd", 0.6, (*NAMED, "owt", "ub")),
        make_case("dropping", 2, DOUBLE, "sgd", 0.6, (*NAMED, "owt", "uwu", "wub")),
        make_case("attending", 2, DOUBLE, "sgd", 0.7, (*NAMED, "bub", "bbu", "ubw", "wuu")),
        make_case("lenet", 2, SINGLE, "sgd", 0.6, (*NAMED, "owt")),
        make_case("attending", 2, SINGLE, "sgd", 0.7, NAMED),
    ]


def further_cases() -> list[Case]:
    """Other networks in single precision."""
    return [
        make_case("mlp", 2, SINGLE, "sgd", 0.5, (*NAMED, "bub")),
        make_case("normed", 2, SINGLE, "sgd", 0.6, ("data", "owt")),
        make_case("grouped", 2, SINGLE, "sgd", 0.6, ("model",)),
        make_case("dropping", 2, SINGLE, "sgd", 0.6, ("owt",)),
    ]


def overlapping_cases() -> list[Case]:
    """Layers compute while their halo is under way."""
    return [
        make_case("lenet", 2, DOUBLE, "sgd", 0.6, ("model", "ubu"), overlap=True),
        make_case("wide", 2, DOUBLE, "sgd", 0.5, ("uu",), overlap=True),
        *(make_case("mlp", 2, DOUBLE, "sgd", 0.5, ("uuu",), empty=empty, overlap=True) for empty in (None, 1)),
    ]


@pytest.fixture(scope="module")
def on_three() -> list[Trained]:
    """All cases of two and of three ranks, on one start of three; two of them are a group of their own."""
    return trained([*two_rank_cases(), *overlapping_cases(), *three_rank_cases()], thorough=False)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_as_one_process_does(ranks: int, on_three: list[Trained]) -> None:
    check([one for one in on_three if one.case.sketch.ranks == ranks])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_on_a_start_of_their_own_train_as_one_process_does_for_all_steps(ranks: int) -> None:
    check(trained([*two_rank_cases(), *overlapping_cases(), *further_cases()] if ranks == 2 else three_rank_cases()))


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_ranks_on_gpus_train_as_one_process_does(overlap: bool) -> None:
    """With one GPU the ranks share it and talk through gloo, with more they talk through NCCL."""
    names = ("lenet", "residual", "dropping", "normed")
    check(trained([make_case(name, 2, DOUBLE, "sgd", 0.6, (*NAMED, "owt"), overlap=overlap) for name in names], kind="cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_ranks_elsewhere_train_as_one_process_does(overlap: bool) -> None:
    """Nothing is forgotten on the CPU, as far as that shows without a GPU."""
    cases = [make_case(name, 2, DOUBLE, "sgd", 0.6, NAMED, overlap=overlap) for name in NETWORKS]
    cases.append(make_case("mlp", 2, DOUBLE, "adam", 0.5, ("bwb", "ubu", "wub"), compressed=True, overlap=overlap))
    check(trained(cases, target=train_all_elsewhere))


def test_every_transition_takes_place() -> None:
    found = set()
    for case in two_rank_cases():
        work = Workload.of_network(case.network)
        for strategy in case.strategies:
            layouts = layout.strategy(work, strategy) if isinstance(strategy, str) else strategy
            found |= {(layouts[reads.space], layouts[layer.computes]) for layer in work.layers for reads in layer.reads}
    assert found == set(TABLE)


def three_rank_cases() -> list[Case]:
    cases = [make_case("residual", 3, DOUBLE, "sgd", 0.5), make_case("dense", 3, DOUBLE, "sgd", 0.6, ("model",), empty=1)]
    cases += [make_case("forked", 3, DOUBLE, "sgd", 0.6, PAIRS[1:], empty=2)]
    cases += [make_case("lenet", 3, DOUBLE, "sgd", 0.5, ("model", "ubu", "bbu"), empty=1)]
    cases += [make_case("lenet", 3, DOUBLE, "sgd", 0.5, ("data", "bbu", "wbu"), batch=2)]  # under batch one rank has no sample
    cases += [make_case("attending", 3, DOUBLE, "sgd", 0.7, ("model", "bbb", "bub"), empty=0)]
    cases += [
        make_case("dropping", 3, DOUBLE, "sgd", 0.7, ("owt",), batch=2),
        make_case("normed", 3, DOUBLE, "sgd", 0.5, ("model",), empty=2),
    ]
    return cases


def test_exchanges_between_units_hand_in_the_communication_volume() -> None:
    for name in ("lenet", "residual", "forked", "dense"):
        case = make_case(name, 3, DOUBLE, "sgd", 0.5)
        work, topology = Workload.of_network(case.network), case.network.topology
        counted = handed_bytes(case, layout.strategy(work, "model"), 3, {})["halo"]
        assert counted == bytes_per_step(work, Partition(case.parts, 3), len(case.targets), 8) > 0
        assert counted == volume_bytes(topology, case.parts, len(case.targets), 8)


def test_a_unit_that_is_read_before_and_after_an_addition_is_sent_twice() -> None:
    """Of the residual space all nine units are read by `middle` and `side` in one value, and by `again` in the other."""
    case = make_case("forked", 2, DOUBLE, "sgd", 1.0)
    work, partition = Workload.of(case.network.topology), Partition(case.parts, 2)
    residual, middle, joined, _ = work.hidden
    assert communication_volume(work, partition, residual) == 2 * 9
    assert communication_volume(work, partition, middle) == 8
    assert communication_volume(work, partition, joined) == 7
    assert crossing_units(work, partition, residual) == 9


@dataclass(frozen=True)
class Mixed:
    """A start network with random connections and parts, under some layouts that it can have."""

    name: str
    seed: int
    ranks: int

    def case(self) -> Case:
        rng = np.random.default_rng((self.seed, list(STARTS).index(self.name)))
        sample = STARTS[self.name]
        network = sample.network(self.seed)
        work = Workload.of_network(network)
        index = {layer.layer: np.sort(rng.permutation(layer.possible)[: -(-7 * layer.possible // 10)]) for layer in network.topology.layers}
        network.set_connections(index)
        parts = {space.name: rng.integers(0, self.ranks, space.units) for space in network.topology.hidden}
        batch = int(rng.integers(2, 9))
        targets = torch.randint(3, (batch,), generator=torch.Generator().manual_seed(self.seed))
        mixes = tuple(random_layouts(work, rng) for _ in range(4))
        return Case(self, network, parts, sample.inputs(self.seed, batch), targets, mixes)


STARTS = {**SAMPLES, **START_NETWORKS}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_any_layouts_of_any_start_network_train_as_one_process_does(ranks: int, seed: int) -> None:
    check(trained([made(Mixed(name, seed, ranks)) for name in STARTS]))


def random_layouts(work: Workload, rng: np.random.Generator) -> Strategy:
    """Layouts that a network can have, not all whole; data parallelism where none is found in many draws."""
    for _ in range(300):
        hidden = {space: layout.allowed(work, space)[rng.integers(3) % len(layout.allowed(work, space))] for space in work.hidden}
        found = layout.completed(work, hidden)
        try:
            layout.check(work, found)
        except ValueError:
            continue
        if set(found.values()) != {"whole"}:
            return found
    return layout.strategy(work, "data")


def test_one_process_trains_the_shard_as_the_network() -> None:
    case = make_case("lenet", 2, DOUBLE, "sgd", 0.6)
    found = train(Peers(0, 1), case, "single", STEPS)
    network = case.network
    optimizer = optim.make("sgd", network.parameters(), 0.05, weight_decay=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(case.inputs), case.targets).backward()
        optimizer.step()
    for name, parameter in network.module.named_parameters():
        assert found.weights[name].flatten().tolist() == pytest.approx(parameter.flatten().tolist(), abs=1e-12)
