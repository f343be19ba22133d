from functools import reduce
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grow.network import Network
from grow.seeds import SEEDS, Seed, Structure, seed
from grow.seeds.radix import radix_matrices
from grow.topology import Topology
from tests.contracts.seed import SeedContract, rng, structured
from tests.contracts.topologies import convolutional, mlp

MNIST = mlp(784, 1024, 1024, 1024, 10)


class TestDense(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("dense")


class TestErdosRenyi(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("erdos_renyi")


class TestERK(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("erk")


class TestMinimal(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("minimal")


class TestRadixNet(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("radixnet")


def masks(topology: Topology, structure: Structure) -> list[np.ndarray]:
    """Per layer which weights exist, (O, I, *kernel)."""
    found = []
    for layer in structured(topology, structure).layers:
        mask = np.zeros(layer.possible, bool)
        mask[layer.positions()] = True
        found.append(mask.reshape(layer.shape))
    return found


def test_a_misspelt_name_is_an_error_that_suggests_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"seed is 'radix-net', but must be one of dense, .*; did you mean 'radixnet'\?"):
        seed("radix-net")


@pytest.mark.parametrize("name", SEEDS)
def test_a_network_takes_the_structure_on(name: str) -> None:
    modules = [nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 40), nn.ReLU(), nn.Linear(40, 10)]
    network = Network(nn.Sequential(*modules), torch.zeros(1, 1, 8, 8))
    structure = seed(name)(network.topology, 0.3, rng())
    for space, units in structure.units.items():
        network.remove_units(space, np.arange(units, network.topology.units[space]))
    network.set_connections(structure.index)
    expected = structured(network.topology, structure)
    assert {c.layer: c.count for c in network.topology.layers} == {c.layer: c.count for c in expected.layers}
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


# ---------------------------------------------------------------- random seeds


@settings(deadline=None, max_examples=50)
@given(st.floats(0.001, 1), st.sampled_from(["erk", "erdos_renyi"]))
def test_the_count_of_random_seeds_is_exact(density: float, name: str) -> None:
    topology = convolutional()
    assert structured(topology, seed(name)(topology, density, rng())).connections == round(density * topology.possible)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 99))
def test_as_many_units_are_connected_as_the_count_allows(inputs: int, outputs: int, share: float, draw: int) -> None:
    topology = mlp(inputs, outputs)
    count = max(1, round(share * inputs * outputs))
    (mask,) = masks(topology, seed("erk")(topology, count / (inputs * outputs), rng(draw)))
    assert mask.sum() == count
    assert mask.any(axis=1).sum() == min(count, outputs)
    assert mask.any(axis=0).sum() == min(count, inputs)


def test_random_seeds_are_drawn_anew_with_another_generator() -> None:
    one, other = (seed("erk")(MNIST, 0.05, rng(draw)).index["fc2"] for draw in (1, 2))
    assert one is not None
    assert not np.array_equal(one, other)  # type: ignore[arg-type]


def test_random_connections_are_spread_evenly() -> None:
    mask = sum(masks(mlp(8, 8), seed("erk")(mlp(8, 8), 0.3, rng(draw)))[0].astype(float) for draw in range(2000))
    assert np.abs(mask / 2000 - 19 / 64).max() < 0.05


# ---------------------------------------------------------------- minimal


def test_minimal_starts_with_a_thirty_second_of_the_units_but_8_at_least() -> None:
    assert seed("minimal")(MNIST, 0.1, rng()).units == {"s1": 32, "s2": 32, "s3": 32}
    assert seed("minimal")(mlp(784, 300, 100, 10), 0.1, rng()).units == {"s1": 9, "s2": 8}
    assert seed("minimal")(mlp(20, 8, 5, 3), 0.1, rng()).units == {}


def test_minimal_starts_with_a_tenth_of_the_connections_or_what_reaching_every_unit_takes() -> None:
    start = structured(MNIST, seed("minimal")(MNIST, 0.1, rng()))
    assert [layer.count for layer in start.layers] == [2509, 102, 102, 32]


# ---------------------------------------------------------------- RadiX-Net: the paper's nets and theorems


def arrays(systems: list[list[int]], widths: list[int], generator: np.random.Generator | None = None) -> list[np.ndarray]:
    return [matrix.toarray() for matrix in radix_matrices(systems, widths, generator)]


def targets(matrix: np.ndarray, node: int) -> set[int]:
    return set(np.flatnonzero(matrix[node]).tolist())


def paths(matrices: list[np.ndarray]) -> np.ndarray:
    return reduce(np.matmul, [matrix.astype(np.float64) for matrix in matrices])  # whole numbers, but products by BLAS


def test_three_binary_digits() -> None:
    matrices = arrays([[2, 2, 2]], [1, 1, 1, 1])
    assert [targets(matrix, 0) for matrix in matrices] == [{0, 1}, {0, 2}, {0, 4}]
    assert [targets(matrix, 7) for matrix in matrices] == [{7, 0}, {7, 1}, {7, 3}]
    assert (paths(matrices) == 1).all()


@pytest.mark.parametrize(
    ("systems", "widths", "shapes", "density", "path_count"),
    [
        ([[2, 2, 2], [2, 2, 2]], [1] * 7, [(8, 8)] * 6, 0.25, 8),
        ([[2, 2, 2], [2, 2]], [1] * 6, [(8, 8)] * 5, 0.25, 4),
        ([[2, 2]], [1, 2, 3], [(4, 8), (8, 12)], 0.5, 2),
        ([[2, 3], [3, 2]], [1, 2, 3, 2, 1], [(6, 12), (12, 18), (18, 12), (12, 6)], 0.458333, 72),
        ([[10, 10]], [8, 3, 1], [(800, 300), (300, 100)], 0.1, 3),
    ],
)
def test_examples(systems: list[list[int]], widths: list[int], shapes: list[tuple[int, int]], density: float, path_count: int) -> None:
    matrices = arrays(systems, widths)
    assert [matrix.shape for matrix in matrices] == shapes
    assert sum(m.sum() for m in matrices) / sum(m.size for m in matrices) == pytest.approx(density, abs=1e-6)
    assert (paths(matrices) == path_count).all()


def test_the_trimmed_net_of_the_authors_experiment() -> None:
    """[10, 10] with widths (8, 30, 1), the first 16 of 800 inputs cut away."""
    first, second = arrays([[10, 10]], [8, 30, 1])
    first = first[16:]
    assert (first.sum(), second.sum()) == (235_200, 30_000)
    assert (first.sum(axis=1) == 300).all()
    fan_in = first.sum(axis=0)
    assert (fan_in.min(), fan_in.max(), (fan_in == 80).sum()) == (70, 80, 2250)
    assert (paths([first, second]) == 30).all()


@st.composite
def nets(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Whole systems of one product, then perhaps a part of one."""
    digits = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    systems = [draw(st.permutations(digits)) for _ in range(draw(st.integers(1, 2)))]
    last = draw(st.integers(0, len(digits) - 1))
    systems += [digits[:last]] if last else []
    widths = draw(st.lists(st.integers(1, 3), min_size=sum(map(len, systems)) + 1, max_size=sum(map(len, systems)) + 1))
    return systems, widths


@settings(deadline=None, max_examples=50)
@given(nets())
def test_theorems(net: tuple[list[list[int]], list[int]]) -> None:
    systems, widths = net
    matrices, nodes, radices = arrays(systems, widths), prod(systems[0]), [r for s in systems for r in s]
    for matrix, radix, (before, after) in zip(matrices, radices, pairwise(widths), strict=True):
        assert matrix.shape == (before * nodes, after * nodes)
        assert (matrix.sum(axis=1) == radix * after).all(), "all fan-outs are equal"
        assert (matrix.sum(axis=0) == radix * before).all(), "all fan-ins are equal"
        assert matrix.mean() == pytest.approx(radix / nodes), "whatever the widths"
    assert (paths(matrices) == prod(widths[1:-1]) * prod(radices) // nodes).all(), "symmetry: equally many paths"


@pytest.mark.parametrize(
    ("systems", "widths", "message"),
    [
        ([[2, 1]], [1, 1, 1], "must have radices of at least 2"),
        ([[2, 2]], [1, 1], "must be 3 positive numbers"),
        ([[2, 2], [3]], [1, 1, 1, 1], "must be equal, the last may divide the others"),
        ([[2], [2, 2]], [1, 1, 1, 1], "must be equal, the last may divide the others"),
    ],
)
def test_systems_that_make_no_radixnet_are_errors(systems: list[list[int]], widths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        radix_matrices(systems, widths)


# ---------------------------------------------------------------- RadiX-Net for given widths and density


def test_widths_that_are_multiples_give_the_papers_net() -> None:
    """Density 1/2 asked of 8-12-4: system (2, 2), N' = 4. The output layer is small against what is asked, but not by half."""
    topology = mlp(8, 12, 4)
    found = masks(topology, seed("radixnet")(topology, 0.5, rng()))
    for mask, matrix in zip(found, arrays([[2, 2]], [2, 3, 1]), strict=True):
        assert (mask == matrix.T).all()


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.25, 0.5])
def test_the_nearest_net_for_mnist_is_near(density: float) -> None:
    structure = seed("radixnet")(MNIST, density, rng())
    assert structured(MNIST, structure).density == pytest.approx(density, rel=0.06)
    assert structure.index["fc4"] is None, "the output layer is small and stays dense"
    assert (paths([mask.T for mask in masks(MNIST, structure)[:3]]) > 0).all(), "every input reaches every unit of the last hidden space"


@pytest.mark.parametrize("density", [0.005, 0.01, 0.1])
def test_connections_are_spread_evenly_over_units_even_where_widths_are_trimmed(density: float) -> None:
    for mask in masks(MNIST, seed("radixnet")(MNIST, density, rng())):
        for fan in (mask.sum(axis=0), mask.sum(axis=1)):
            assert fan.min() >= 1
            assert fan.max() <= 4 * fan.min()


def test_a_convolution_is_sparse_between_channels_and_keeps_all_taps_and_positions() -> None:
    topology = convolutional()
    first, second, flattened, last = masks(topology, seed("radixnet")(topology, 0.5, rng()))
    assert first.all()
    assert last.all()
    assert 0 < second.mean() < 1
    assert 0 < flattened.mean() < 1
    assert (second.any(axis=(2, 3)) == second.all(axis=(2, 3))).all()
    channels = flattened.reshape(12, 9, 4)
    assert (channels.any(axis=2) == channels.all(axis=2)).all()


def test_where_only_dense_is_near_it_is_dense() -> None:
    structure = seed("radixnet")(MNIST, 0.95, rng())
    assert set(structure.index.values()) == {None}
