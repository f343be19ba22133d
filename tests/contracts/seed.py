"""What every seed keeps. Subclass, name the class Test..., and supply the fixture `seed`."""

from dataclasses import replace

import numpy as np
import pytest

from grow.axes import entry_units
from grow.seeds import Seed, Structure
from grow.topology import Topology
from tests.contracts.crossed import crossed
from tests.contracts.topologies import branched, convolutional, mlp, with_heads

TOPOLOGIES = {
    "mlp": (mlp(20, 40, 40, 5),),
    "convolutional": (convolutional(),),
    "branched": (branched(),),
    "heads": (with_heads(),),
    "one layer": (mlp(6, 4),),
}
DENSITIES = {"lowest": (0.3,), "higher": (0.6,), "dense": (1.0,)}
"""At the lowest, every unit of these topologies can still be reached."""


def structured(topology: Topology, structure: Structure) -> Topology:
    """The topology that training starts with."""
    units = {**topology.units, **structure.units}
    spaces = tuple(replace(space, units=units[space.name]) for space in topology.spaces)
    return Topology(spaces, tuple(replace(c, shape=c.sized(units), index=structure.index[c.layer]) for c in topology.layers))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("density", "topology"), crossed(DENSITIES, TOPOLOGIES, ("lowest",)))
class SeedContract:
    @pytest.fixture
    def seed(self) -> Seed:
        raise NotImplementedError("supply the seed under test")

    def test_every_layer_has_an_index_of_sorted_positions_in_its_new_weight(self, seed: Seed, topology: Topology, density: float) -> None:
        structure = seed(topology, density, rng())
        assert list(structure.index) == [layer.layer for layer in topology.layers]
        for layer in structured(topology, structure).layers:
            if layer.index is not None:
                assert layer.index.dtype == np.int64
                assert (np.diff(layer.index) > 0).all()
                assert layer.index[0] >= 0
                assert layer.index[-1] < layer.possible
                assert len(layer.index) < layer.possible, "a dense layer has no index"

    def test_only_hidden_spaces_change_and_none_grows_or_vanishes(self, seed: Seed, topology: Topology, density: float) -> None:
        for space, units in seed(topology, density, rng()).units.items():
            assert topology.space(space).role == "hidden"
            assert 1 <= units < topology.units[space]

    def test_every_unit_has_a_fan_in_and_a_fan_out(self, seed: Seed, topology: Topology, density: float) -> None:
        start = structured(topology, seed(topology, density, rng()))
        fed = {space.name: np.zeros(space.units, bool) for space in start.spaces}
        read = {space.name: np.zeros(space.units, bool) for space in start.spaces}
        for layer in start.layers:
            rows, columns = layer.rows_and_columns(layer.positions())
            if layer.depthwise:
                assert len(np.unique(rows)) == layer.shape[0], "a depthwise layer passes every unit on"
                continue
            segments, units = entry_units(layer.source, start.units)
            fed[layer.target[0].space][entry_units(layer.target, start.units)[1][rows]] = True
            for number, segment in enumerate(layer.source):
                read[segment.space][units[columns[segments[columns] == number]]] = True
        assert all(fed[space.name].all() for space in start.spaces if space.role != "input")
        assert all(read[space.name].all() for space in start.spaces if space.role != "output")

    def test_the_same_generator_gives_the_same_structure(self, seed: Seed, topology: Topology, density: float) -> None:
        one, other = seed(topology, density, rng(7)), seed(topology, density, rng(7))
        assert one.units == other.units
        for layer in topology.layers:
            a, b = one.index[layer.layer], other.index[layer.layer]
            assert (a is None and b is None) or np.array_equal(a, b)  # type: ignore[arg-type]

    def test_excluded_layers_stay_dense(self, seed: Seed, topology: Topology, density: float) -> None:
        chosen = {topology.layers[-1].layer}
        structure = seed(topology, density, rng(), excluded=frozenset(chosen)) if len(topology.layers) > 1 else None
        assert structure is None or structure.index[topology.layers[-1].layer] is None
        with pytest.raises(ValueError, match="layer is 'nowhere', but must be one of"):
            seed(topology, density, rng(), excluded=frozenset({"nowhere"}))

    def test_a_density_outside_its_range_is_an_error(self, seed: Seed, topology: Topology, density: float) -> None:
        for wrong in (0.0, -density, 1 + density):
            with pytest.raises(ValueError, match=rf"density is {wrong}, but must be in \(0, 1\]"):
                seed(topology, wrong, rng())
