import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from grow.criteria import criterion
from grow.evidence import Evidence, gather
from grow.network import Network
from grow.patterns import Choice, Scored, highest, highest_balanced, lowest
from grow.scoring import to_grow, to_prune
from grow.task import Batch


def network(density: float = 0.3, compressed: bool = False) -> Network:
    torch.manual_seed(0)
    found = Network(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 4)), torch.zeros(1, 20))
    rng = np.random.default_rng(0)
    found.set_connections({c.layer: np.flatnonzero(rng.random(c.possible) < density) for c in found.topology.layers})
    if compressed:
        found.use_kernels(lambda case: "csr", batch=8)
    return found


def convolutional() -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
    found = Network(module, torch.zeros(1, 2, 8, 8))
    rng = np.random.default_rng(0)
    found.set_connections({c.layer: np.flatnonzero(rng.random(c.possible) < 0.3) for c in found.topology.layers})
    return found


def data(found: Network, samples: int = 6) -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(samples, *found.example.shape[1:], generator=draws), torch.randint(4, (samples,), generator=draws))]


def evidence(found: Network, name: str) -> Evidence:
    return gather(found, data(found), functional.cross_entropy, criterion(name).needs, torch.Generator().manual_seed(2))


def lists(choice: Choice) -> dict[str, list[int]]:
    return {layer: positions.tolist() for layer, positions in choice.items()}


def all_at_once(found: Network, name: str, existing: bool) -> Scored:
    """Scores of all existing or absent connections, from whole layers."""
    given, scored = evidence(found, name), {}
    for layer in found.topology.layers:
        wanted = np.isin(np.arange(layer.possible), layer.positions()) == existing
        scores = criterion(name).score(given.layer(layer.layer)).flatten().numpy()
        scored[layer.layer] = (np.flatnonzero(wanted), scores[wanted])
    return scored


@pytest.mark.parametrize("name", ["gradient", "momentum", "obd", "random"])
@pytest.mark.parametrize("make", [network, convolutional])
@pytest.mark.parametrize("values", [1, 70, 10**6])
def test_growth_in_blocks_of_rows_chooses_what_growth_at_once_would(
    name: str, make: type[Network], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grow.evidence.base.BLOCK_VALUES", values)
    found = make()
    chosen = to_grow(found, criterion(name), evidence(found, name), 60)
    assert lists(chosen) == lists(highest(all_at_once(found, name, existing=False), 60))


@pytest.mark.parametrize("name", ["gradient", "random"])
@pytest.mark.parametrize("values", [1, 70])
@pytest.mark.parametrize("held", [0, 10**6])
def test_growth_with_a_price_in_blocks_of_rows_chooses_what_it_would_at_once(
    name: str, values: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grow.evidence.base.BLOCK_VALUES", values)
    monkeypatch.setattr("grow.scoring.HELD", held)
    monkeypatch.delattr("grow.scoring.highest_balanced" if held == 0 else "grow.streams.highest_balanced")
    found = network()
    parts = {space.name: np.arange(space.units) % 3 // 2 for space in found.topology.hidden}
    found.assign(parts)
    chosen = to_grow(found, criterion(name), evidence(found, name), 60, price=4.0)
    assert lists(chosen) == lists(highest_balanced(all_at_once(found, name, existing=False), found.topology, parts, 4.0, 60))


@pytest.mark.parametrize("compressed", [False, True])
def test_pruning_in_blocks_of_rows_chooses_what_pruning_at_once_would(compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grow.evidence.base.BLOCK_VALUES", 70)
    found = network(compressed=compressed)
    chosen = to_prune(found, criterion("obd"), evidence(found, "obd"), 40)
    scored = all_at_once(found, "obd", existing=True)
    protected = {}
    for name, (positions, scores) in scored.items():
        layer = found.topology.layer(name)
        rows = positions // layer.shape[1]
        groups = [rows == row for row in np.unique(rows)] if name == "4" else [rows >= 0]
        keep = [np.flatnonzero(group)[scores[group].argmax()] for group in groups]
        protected[name] = (np.delete(positions, keep), np.delete(scores, keep))
    assert lists(chosen) == lists(lowest(protected, 40))


@pytest.mark.parametrize("count", [1, 20, 60, 100, 10**4])
def test_of_equal_weights_the_first_are_pruned_and_no_layer_or_output_unit_loses_all_however_many(count: int) -> None:
    """An oracle that goes through the sorted weights one by one."""
    found, rng = network(density=0.1), np.random.default_rng(count)
    with torch.no_grad():
        for layer in found.layers.values():
            layer.weight.copy_(torch.from_numpy(rng.integers(1, 4, layer.weight.shape)) * (layer.weight != 0))
    topology, taken = found.topology, dict[str, list[int]]()
    ranked = []
    for number, layer in enumerate(topology.layers):
        values = {int(at): float(found.layers[layer.layer].weight.detach().flatten()[at]) for at in layer.positions()}
        taken[layer.layer] = []
        if layer.layer == "4":  # the last one of a unit's strongest stays
            rows = {at // layer.shape[1] for at in values}
            kept = {max((at for at in values if at // layer.shape[1] == row), key=lambda at: (values[at], at)) for row in rows}
        else:  # the first one of the layer's strongest
            kept = {max(values, key=lambda at: (values[at], -at))} if count >= layer.count else set()
        ranked += [(value, number, at, layer.layer) for at, value in values.items() if at not in kept]
    for _, _, at, name in sorted(ranked)[:count]:
        taken[name].append(at)
    chosen = to_prune(found, criterion("magnitude"), evidence(found, "magnitude"), count)
    assert lists(chosen) == {name: sorted(positions) for name, positions in taken.items()}


def test_frozen_layers_neither_lose_nor_gain() -> None:
    found = network()
    given, frozen = evidence(found, "gradient"), frozenset({"2"})
    for choose in (to_prune, to_grow):
        chosen = choose(found, criterion("gradient"), given, 50, frozen=frozen)
        assert "2" not in chosen
        assert sum(map(len, chosen.values())) == 50
    with pytest.raises(ValueError, match="layer is 'nine', but must be one of 0, 2, 4"):
        to_grow(found, criterion("gradient"), given, 1, frozen=frozenset({"nine"}))


def test_no_more_is_pruned_than_leaves_every_output_connected() -> None:
    found = network()
    chosen = to_prune(found, criterion("magnitude"), evidence(found, "magnitude"), 10**6)
    left = found.topology.connections - sum(map(len, chosen.values()))
    assert left == 2 + 4  # one in each hidden layer, one into each output


class Largest(TorchDispatchMode):
    """Notes the largest dense floating tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.layout == torch.strided:
                self.values = max(self.values, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["gradient", "momentum", "random"])
def test_growth_of_a_wide_layer_never_holds_its_dense_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 x 1000 connections, of which 1 % exist: blocks of 16 rows, factors of 8 samples, and the connections themselves."""
    monkeypatch.setattr("grow.evidence.base.BLOCK_VALUES", 16_000)
    torch.manual_seed(0)
    found = Network(nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 4)), torch.zeros(1, 1000))
    found.set_connections({"0": np.arange(0, 10**6, 100)})
    found.use_kernels(lambda case: "csr" if case.rows == 1000 else "dense", batch=8)
    with Largest() as seen:
        chosen = to_grow(found, criterion(name), evidence(found, name), 500)
    assert sum(map(len, chosen.values())) == 500
    assert 0 < seen.values <= 16_000


def test_growth_beyond_full_density_is_refused() -> None:
    found = network()
    absent = found.topology.possible - found.topology.connections
    for price in (None, 0.5):
        found.assign({space.name: np.arange(space.units) % 2 for space in found.topology.hidden})
        chosen = to_grow(found, criterion("gradient"), evidence(found, "gradient"), absent, price)
        assert sum(map(len, chosen.values())) == absent
        with pytest.raises(ValueError, match=f"count is {absent + 1}, but must be between 0 and the number of candidates, {absent}"):
            to_grow(found, criterion("gradient"), evidence(found, "gradient"), absent + 1, price)


@pytest.mark.parametrize("choose", [to_prune, to_grow])
def test_evidence_of_before_an_edit_is_refused(choose) -> None:  # type: ignore[no-untyped-def]
    found = network()
    stale = evidence(found, "gradient")
    found.grow_connections(to_grow(found, criterion("gradient"), stale, 3))
    with pytest.raises(ValueError, match="evidence is of the network before an edit, but must be of the network as it is"):
        choose(found, criterion("gradient"), stale, 3)
