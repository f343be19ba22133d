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
from grow.seeds.expander import regular_bipartite
from grow.seeds.radix import path_count, radix_matrices
from grow.seeds.radixnet import nearest, plan, planted
from grow.topology import Topology
from tests.contracts.seed import SeedContract, rng, structured
from tests.contracts.topologies import convolutional, mlp, with_heads

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


class TestRadixNetPermuted(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("radixnet_permuted")


class TestExpander(SeedContract):
    @pytest.fixture
    def seed(self) -> Seed:
        return seed("expander")


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
    count = path_count(systems, widths)
    assert count == prod(widths[1:-1]) * prod(radices) // nodes
    assert (paths(matrices) == count).all(), "symmetry: equally many paths"
    permuted = arrays(systems, widths, rng(len(radices)))
    assert (paths(permuted) == count).all(), "permutations between complete systems change no number of paths"
    assert [matrix.sum() for matrix in permuted] == [matrix.sum() for matrix in matrices]


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


def test_a_permutation_within_a_system_leaves_pairs_without_a_path() -> None:
    """What the permuted variant must not do."""
    first, second, third = arrays([[2, 2, 2]], [1] * 4)
    torn = []
    for draw in range(50):
        generator = rng(draw)
        torn.append(paths([first, second[generator.permutation(8)], third[generator.permutation(8)]]))
    assert all(count.min() == 0 for count in torn)
    assert all(count.sum() == 64 for count in torn)


def test_permuted_nets_differ_from_the_explicit_one_and_from_draw_to_draw() -> None:
    explicit, one, other = (arrays([[2, 2], [2, 2]], [1, 2, 2, 2, 1], draw) for draw in (None, rng(1), rng(2)))
    assert all((explicit[i] == one[i]).all() for i in (1, 3)), "within a system nothing moves"
    assert not (explicit[2] == one[2]).all()
    assert not (one[2] == other[2]).all()


def test_the_base_system_of_the_graph_challenge() -> None:
    """1,024 neurons: (2, 2, 2, 2, 2, 2), 16 nodes a place, 32 connections a neuron, 16^5 paths for every pair."""
    matrices = radix_matrices([[2] * 6], [16] * 7)
    assert [matrix.nnz for matrix in matrices] == [32 * 1024] * 6
    for i, matrix in enumerate(matrices):
        shift = np.roll(np.eye(64, dtype=bool), 2**i, axis=1)
        assert (matrix.toarray() == np.kron(np.ones((16, 16), bool), np.eye(64, dtype=bool) | shift)).all()
    assert (paths([matrix.toarray() for matrix in matrices]) == 1_048_576).all()
    assert path_count([[2] * 6], [16] * 7) == 1_048_576


# ---------------------------------------------------------------- RadiX-Net for given widths and density


def test_a_plan_of_given_systems_is_the_experiment_of_the_authors() -> None:
    """LeNet-300-100 with [10, 10]: 784 inputs are 8 nodes at each of 100 places, less 16. The last layer stays dense."""
    topology = mlp(784, 300, 100, 10)
    found = plan(topology, [[10, 10]], ["fc1", "fc2"])
    assert (found.widths, found.trimmed) == ({"s0": 8, "s1": 3, "s2": 1}, {"s0": 16, "s1": 0, "s2": 0})
    assert found.connections == 23_520 + 3_000 + 1_000
    assert found.density == 27_520 / 266_200
    first, second, third = masks(topology, planted(topology, found))
    assert (first.sum(), second.sum(), third.sum()) == (23_520, 3_000, 1_000)
    assert (paths([first.T, second.T]) == 3).all(), "trimmed inputs take no path from the others"
    wide = plan(mlp(784, 3000, 100, 10), [[10, 10]], ["fc1", "fc2"])
    assert wide.connections == 235_200 + 30_000 + 1_000


def test_several_systems_are_planted_one_after_another_and_permuted_between() -> None:
    topology = mlp(12, 12, 24, 12, 12)
    found = plan(topology, [[3, 4], [2, 6]])
    assert found.complete
    assert found.density == pytest.approx((3 * 1 + 4 * 2 + 2 * 2 + 6 * 2 / 2) / (12 * 6), abs=0.05)
    for generator in (None, rng(3)):
        layers = [mask.T for mask in masks(topology, planted(topology, found, generator))]
        assert (paths(layers) == path_count([[3, 4], [2, 6]], [1, 1, 2, 1, 1])).all()


def test_ends_that_are_trimmed_keep_one_path_from_every_input_to_every_output() -> None:
    """N' = 36 with 36 units between the ends, but only 20 inputs and 9 outputs: whole residue classes are cut."""
    topology = mlp(20, 36, 9)
    found = plan(topology, [[6, 6]])
    assert found.trimmed == {"s0": 16, "s1": 0, "s2": 27}
    first, second = (mask.T for mask in masks(topology, planted(topology, found)))
    assert (paths([first, second]) == 1).all()
    assert (first.sum(), second.sum()) == (20 * 6, 9 * 6)


@pytest.mark.parametrize(
    ("systems", "widths", "message"),
    [
        ([[2, 2]], (8, 8, 8, 8), "must have a radix for each of 3 levels"),
        ([[4, 4]], (16, 8, 16), "must have a product N' that the widths can carry, not 16"),
        ([[4, 4]], (16, 16, 3), "must have a product N' that the widths can carry, not 16"),
        ([[2, 1]], (8, 8, 8), "must have radices of at least 2"),
    ],
)
def test_systems_that_the_widths_cannot_carry_are_errors(systems: list[list[int]], widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(mlp(*widths), systems)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.02, 1), st.sampled_from(["mlp", "convolutional", "heads"]))
def test_the_density_that_a_plan_tells_is_the_one_planted(density: float, name: str) -> None:
    topology = {"mlp": mlp(30, 48, 40, 5), "convolutional": convolutional(), "heads": with_heads()}[name]
    found = nearest(topology, density)
    assert structured(topology, planted(topology, found)).connections == found.connections
    assert found.density == found.connections / topology.possible


def test_no_other_system_would_have_been_nearer() -> None:
    topology = mlp(60, 60, 60)
    found = nearest(topology, 0.2)
    others = [plan(topology, [[a, b]]).density for a in range(2, 9) for b in range(2, 9) if a * b <= 60 and max(a, b) <= 4 * min(a, b)]
    assert abs(np.log(found.density / 0.2)) <= min(abs(np.log(np.array(others) / 0.2))) + 0.01


def test_rows_of_one_head_are_nodes_of_their_own() -> None:
    """4 heads of 6 rows are 24 nodes: the space is no bottleneck of 4 places."""
    topology = with_heads()
    found = plan(topology, [[4, 4]], ["value", "joined"])
    assert found.widths == {"a": 1, "h": 2, "b": 1}
    value, joined = (masks(topology, planted(topology, found))[i].T for i in (2, 3))
    assert (value.sum(axis=0) == 4).all()
    assert (paths([value, joined]) >= 1).all()


def test_a_plan_of_all_layers_passes_over_depthwise_ones_and_must_have_others() -> None:
    assert list(plan(with_heads(), [[2, 2], [2, 2]]).levels) == ["conv", "value", "joined", "head"]
    with pytest.raises(ValueError, match="must name one that is not depthwise"):
        plan(with_heads(), [[2, 2]], ["depthwise"])


# ---------------------------------------------------------------- RadiX-Net: the seed


def test_widths_that_are_multiples_give_the_papers_net() -> None:
    """Density 1/2 asked of 8-12-4: system (2, 2), N' = 4. The output layer is small against what is asked, but not by half."""
    topology = mlp(8, 12, 4)
    found = masks(topology, seed("radixnet")(topology, 0.5, rng()))
    for mask, matrix in zip(found, arrays([[2, 2]], [2, 3, 1]), strict=True):
        assert (mask == matrix.T).all()


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, *(pytest.param(between, marks=pytest.mark.slow) for between in (0.05, 0.25))])
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
    structure = seed("radixnet")(mlp(196, 256, 256, 10), 0.95, rng())
    assert set(structure.index.values()) == {None}


# ---------------------------------------------------------------- expanders


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_degrees_differ_by_1_at_most_and_no_edge_is_double(targets: int, sources: int, share: float, draw: int) -> None:
    edges = round(share * targets * sources)
    positions = regular_bipartite(targets, sources, edges, rng(draw))
    assert len(np.unique(positions)) == edges == len(positions)
    mask = np.zeros(targets * sources, bool)
    mask[positions] = True
    for axis in (0, 1):
        degrees = mask.reshape(targets, sources).sum(axis=axis)
        assert degrees.max() - degrees.min() <= 1


def test_expanders_are_connected_and_nearly_ramanujan() -> None:
    """The second singular value of a biregular graph is at least about sqrt(d - 1) + sqrt(D - 1), and random ones come near."""
    seconds = []
    for draw in range(10):
        mask = np.zeros(60 * 90)
        mask[regular_bipartite(60, 90, 60 * 9, rng(draw))] = 1  # 9 sources a target, 6 targets a source
        values = np.linalg.svd(mask.reshape(60, 90), compute_uv=False)
        assert values[0] == pytest.approx(np.sqrt(9 * 6))
        assert values[1] < values[0] - 0.5, "connected: the largest value is simple"
        seconds.append(values[1])
    assert np.mean(seconds) < 1.05 * (np.sqrt(8) + np.sqrt(5))


def test_expanders_differ_from_draw_to_draw_and_more_edges_than_pairs_are_an_error() -> None:
    assert not np.array_equal(regular_bipartite(20, 20, 60, rng(1)), regular_bipartite(20, 20, 60, rng(2)))
    with pytest.raises(ValueError, match=r"edges is 7, but must be in \[0, 6\]"):
        regular_bipartite(2, 3, 7, rng())


def test_an_expander_of_linear_layers_has_exactly_the_connections_asked_for() -> None:
    topology = mlp(90, 70, 50, 10)
    for density in (0.033, 0.1, 0.77):
        assert structured(topology, seed("expander")(topology, density, rng())).connections == round(density * topology.possible)


def test_an_expander_joins_channels_by_whole_kernels_and_leaves_depthwise_layers_dense() -> None:
    topology = convolutional()
    _, second, _, _ = masks(topology, seed("expander")(topology, 0.3, rng()))
    assert (second.any(axis=(2, 3)) == second.all(axis=(2, 3))).all()
    for density in (0.3, 0.5, 0.9):
        assert structured(topology, seed("expander")(topology, density, rng())).connections == round(density * topology.possible)
    assert seed("expander")(with_heads(), 0.4, rng()).index["depthwise"] is None


# ---------------------------------------------------------------- excluded layers


@pytest.mark.parametrize("name", ["erk", "erdos_renyi", "expander"])
def test_other_layers_make_up_for_excluded_ones(name: str) -> None:
    topology = mlp(20, 40, 40, 5)
    start = structured(topology, seed(name)(topology, 0.5, rng(), excluded=frozenset({"fc1"})))
    assert start.layer("fc1").density == 1
    assert start.connections == round(0.5 * topology.possible)


def test_excluded_layers_that_have_the_density_already_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"connections is 260, but must be in \[801, 2600\] where fc1 is kept as it is"):
        seed("erk")(mlp(20, 40, 40, 5), 0.1, rng(), excluded=frozenset({"fc1"}))
