from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grow import allocate
from grow.allocate import counts, erdos_renyi, erk, uniform

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
CONVOLUTIONS = {"conv1": (32, 16, 3, 3), "conv2": (32, 32, 3, 3), "conv3": (64, 32, 3, 3), "fc": (10, 64)}

side = st.integers(1, 40)
shapes = st.lists(
    st.one_of(st.tuples(side, side), st.tuples(side, side, st.integers(1, 5), st.integers(1, 5))), min_size=1, max_size=6
).map(lambda found: {f"layer{i}": shape for i, shape in enumerate(found)})
allocations = pytest.mark.parametrize("allocation", [uniform, erdos_renyi, erk])


def rounded(densities: dict[str, float]) -> list[float]:
    return [round(density, 4) for density in densities.values()]


@pytest.mark.parametrize(
    ("density", "expected"),
    [(0.1, [0.0796, 0.2302, 1.0]), (0.05, [0.0385, 0.1113, 0.9185]), (0.02, [0.0154, 0.0445, 0.3674])],
)
def test_erk_of_lenet_300_100(density: float, expected: list[float]) -> None:
    assert rounded(erk(LENET, density)) == expected
    assert rounded(erdos_renyi(LENET, density)) == expected, "without kernels both are one"


def test_erk_counts_of_lenet_300_100() -> None:
    assert counts(LENET, erk(LENET, 0.1), 26620) == {"fc1": 18714, "fc2": 6906, "fc3": 1000}


def test_erk_counts_the_kernel_and_erdos_renyi_does_not() -> None:
    assert rounded(erk(CONVOLUTIONS, 0.2)) == [0.3080, 0.1996, 0.1454, 1.0]
    assert rounded(erdos_renyi(CONVOLUTIONS, 0.2)) == [0.3170, 0.2113, 0.1585, 0.3909]


@allocations
@given(shapes=shapes, density=st.floats(0.001, 1))
def test_densities_meet_the_budget_and_their_bounds(allocation, shapes: dict[str, tuple[int, ...]], density: float) -> None:  # type: ignore[no-untyped-def]
    densities = allocation(shapes, density)
    assert list(densities) == list(shapes)
    assert all(0 < d <= 1 for d in densities.values())
    possible = sum(map(prod, shapes.values()))
    assert sum(densities[name] * prod(shape) for name, shape in shapes.items()) == pytest.approx(density * possible)


@given(shapes=shapes, density=st.floats(0.001, 1))
def test_counts_are_exact_and_each_within_one_of_its_share(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    densities, total = erk(shapes, density), round(density * sum(map(prod, shapes.values())))
    found = counts(shapes, densities, total)
    assert sum(found.values()) == total
    for name, shape in shapes.items():
        assert 0 <= found[name] <= prod(shape)
        assert abs(found[name] - densities[name] * prod(shape)) < 1 + 1e-9


@given(shapes=shapes)
def test_the_full_density_is_dense(shapes: dict[str, tuple[int, ...]]) -> None:
    assert counts(shapes, erk(shapes, 1.0), sum(map(prod, shapes.values()))) == {name: prod(shape) for name, shape in shapes.items()}


@given(side, side, side, side, st.floats(0.01, 0.99))
def test_of_two_linear_layers_the_smaller_is_never_sparser(
    rows: int, columns: int, more_rows: int, more_columns: int, density: float
) -> None:
    small, large = (rows, columns), (rows + more_rows, columns + more_columns)
    densities = erk({"large": large, "small": small}, density)
    assert densities["small"] >= densities["large"]


def test_ties_go_to_the_first_layer() -> None:
    assert counts({"a": (1, 3), "b": (1, 3)}, {"a": 0.5, "b": 0.5}, 3) == {"a": 2, "b": 1}


def test_a_total_that_contradicts_the_densities_is_an_error() -> None:
    with pytest.raises(ValueError, match="total is 5, but must be what the densities add up to, 3"):
        counts({"a": (2, 3)}, {"a": 0.5}, 5)


@allocations
@pytest.mark.parametrize("density", [0.0, -0.1, 1.3])
def test_a_density_outside_its_range_is_an_error(allocation, density: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=rf"density is {density}, but must be in \(0, 1\]"):
        allocation(LENET, density)


@given(st.sampled_from(sorted(allocate.ALLOCATIONS)), st.integers(1, 235_200 + 30_000))
def test_layers_that_are_kept_keep_their_count_and_the_whole_network_meets_the_total(name: str, rest: int) -> None:
    found = allocate.shares(LENET, 777 + rest, allocate.allocation(name), {"fc3": 777})
    assert found["fc3"] == 777
    assert sum(found.values()) == 777 + rest
    assert all(0 <= count <= prod(LENET[layer]) for layer, count in found.items())


def test_the_density_of_the_whole_network_decides_also_where_a_layer_stays_dense() -> None:
    assert allocate.shares(LENET, 26_620, allocate.uniform, {"fc3": 1000}) == {"fc1": 22_722, "fc2": 2_898, "fc3": 1000}


@pytest.mark.parametrize("total", [1000, 266_201])
def test_a_total_that_the_kept_layers_leave_no_room_for_is_named(total: int) -> None:
    with pytest.raises(ValueError, match=rf"^connections is {total}, but must be in \[1001, 266200\] where fc3 is kept as it is; change"):
        allocate.shares(LENET, total, allocate.erk, {"fc3": 1000})


def test_an_unknown_allocation_is_named_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="allocation is 'erq', but must be one of uniform, erdos_renyi, erk; did you mean 'erk'"):
        allocate.allocation("erq")
