"""A network that is built sparse is the network that a dense one would have become, without ever being as large."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from grow import optim
from grow.axes import Segment
from grow.criteria import criterion
from grow.evidence import gather
from grow.network import Network
from grow.scoring import to_grow, to_prune
from grow.seeds.scatter import scatter
from grow.sparse_start import sparse_network
from grow.topology import Connections


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 30), nn.PReLU(), nn.Linear(30, 5))


def start(density: float = 0.1, **settings: object) -> Network:
    with torch.device("meta"):
        made = module()
    return sparse_network(made, torch.zeros(1, 40), density, **settings)  # type: ignore[arg-type]


def test_nothing_is_larger_than_the_connections() -> None:
    network = start(kept=frozenset({"5"}))
    assert network.topology.connections == round(0.1 * network.topology.possible)
    for name, layer in network.layers.items():
        assert layer.weight.numel() == network.topology.layer(name).count
        assert layer.kernel == ("dense" if name == "5" else "csr")
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])


def test_weights_are_drawn_for_the_live_fan_in_and_norms_are_the_identity() -> None:
    layer, norm = (network := start()).layers["0"], network.module.get_submodule("1")
    rows = torch.from_numpy(network.topology.layer("0").positions()) // 40
    bound, weight = torch.bincount(rows)[rows].rsqrt(), layer.weight.detach()
    assert bool((weight.abs() <= bound).all())
    assert float((weight.abs() / bound).mean()) == pytest.approx(0.5, abs=0.05)
    assert norm.weight.tolist() == norm.running_var.tolist() == [1.0] * 60
    assert norm.running_mean.tolist() == norm.bias.tolist() == [0.0] * 60


def test_one_draw_is_one_network() -> None:
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    first, again, other = (start(draw=draw).eval()(x) for draw in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_computes_what_the_masked_dense_network_does() -> None:
    network = start().double().eval()
    dense = module().double().eval()
    state = {name: tensor for name, tensor in network.module.state_dict().items() if not name.endswith(".positions")}
    dense.load_state_dict(state | {f"{name}.weight": layer.dense_weight() for name, layer in network.layers.items()})
    x = torch.randn(4, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), dense(x), rtol=1e-12, atol=1e-12)


def test_it_trains_prunes_and_grows_like_any_other() -> None:
    network, generator = start(), torch.Generator().manual_seed(0)
    optimizer = optim.make("adam", network.parameters(), 0.01)
    network.attach(optimizer)
    batch = torch.randn(16, 40, generator=generator), torch.randint(5, (16,), generator=generator)
    before = network.topology.connections
    for name, choose, edit in (("magnitude", to_prune, network.prune_connections), ("gradient", to_grow, network.grow_connections)):
        functional.cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()
        chosen = criterion(name)
        edit(choose(network, chosen, gather(network, [batch], functional.cross_entropy, chosen.needs, generator), 50))
    assert network.topology.connections == before
    assert all(len(optimizer.state[layer.weight]["exp_avg"]) == layer.connections for layer in network.layers.values())


def test_what_exists_is_scored_alike_with_and_without_the_rows_between() -> None:
    for network in (start(), Network(module(), torch.zeros(1, 40))):
        network.prune_connections({"0": network.topology.layer("0").positions()[::3]})
        for name in ("magnitude", "taylor"):
            chosen, generator = criterion(name), torch.Generator().manual_seed(0)
            batch = torch.randn(16, 40, generator=generator), torch.randint(5, (16,), generator=generator)
            evidence = gather(network, [batch], functional.cross_entropy, chosen.needs, generator)
            assert chosen.pointwise
            one, other = (to_prune(network, replace(chosen, pointwise=flag), evidence, 40) for flag in (True, False))
            assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in other.items()}


def test_a_layer_of_four_thousand_million_possible_connections_is_scattered_by_those_that_it_has() -> None:
    units = {"a": 2**16, "b": 2**16}
    layer = Connections("0", (2**16, 2**16), (Segment("b"),), (Segment("a"),), None)
    positions = scatter(layer, units, 70_000, np.random.default_rng(0))
    assert positions is not None
    assert len(np.unique(positions)) == 70_000
    assert len(np.unique(positions // 2**16)) == len(np.unique(positions % 2**16)) == 2**16


def test_what_has_values_or_tells_no_rule_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor '0.weight' is on cpu, but must be on meta; build the module under torch.device"):
        sparse_network(module(), torch.zeros(1, 40), 0.1)
    with pytest.raises(ValueError, match="kernel is 'dense', but must store connections alone: csr"):
        start(kernel="dense")

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.scale = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * self.scale)  # type: ignore[no-any-return]

    with torch.device("meta"):
        scaled = Scaled()
    with pytest.raises(ValueError, match="tensor 'scale' is on meta, but must belong to a layer, a norm or an embedding"):
        sparse_network(scaled, torch.zeros(1, 4), 0.5)
