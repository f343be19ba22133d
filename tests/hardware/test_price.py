"""The price that a machine suggests: it follows the links, the kernels and the batch."""

from dataclasses import replace

import numpy as np
import pytest

from grow.axes import Segment
from grow.topology import Connections, Space, Topology
from hardware.partition import Partition
from hardware.partitioners import PARTITIONERS
from hardware.presets import PRESETS, preset
from hardware.price import connection_seconds, halo_unit_seconds, machine_price, price_by_time
from hardware.profile import Profile
from hardware.profile.measurements import KernelTime
from hardware.workload import Workload
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import mlp

WORK = Workload.of(sparse(mlp(20, 256, 256, 10), 0.1))
HALVES = PARTITIONERS["contiguous"](WORK, 2)


def slower(profile: Profile, times: float) -> Profile:
    """The same machine with slower links. What was measured over the links no longer holds."""
    links = tuple(replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / times) for link in profile.links)
    return replace(profile, links=links, collectives=(), halos=(), messages=())


def latency_alone(profile: Profile) -> Profile:
    """The same machine, on which every layer takes as long as the smallest."""
    return replace(profile, kernels=tuple(replace(time, seconds=1e-5) for time in profile.kernels))


@pytest.mark.parametrize("name", PRESETS)
def test_on_every_preset_a_halo_unit_costs_more_than_a_connection(name: str) -> None:
    assert 1 < price_by_time(WORK, HALVES, preset(name), 256) < np.inf


def test_the_price_follows_the_bandwidth_of_the_links() -> None:
    prices = [price_by_time(WORK, HALVES, slower(preset(PRESETS[0]), times), 256) for times in (1e3, 1e4, 1e5)]
    assert prices[1] / prices[0] == pytest.approx(10, rel=0.1)
    assert prices[2] / prices[1] == pytest.approx(10, rel=0.1)


def test_it_is_the_ratio_of_two_times() -> None:
    profile = preset(PRESETS[0])
    found = halo_unit_seconds(profile, 2, 128, 64) / connection_seconds(profile, WORK.layer("fc2"), 2, 64)
    assert price_by_time(WORK, HALVES, profile, 64) == pytest.approx(found)


@pytest.mark.parametrize(("times", "fastest"), [(3.0, 1.0), (1 / 3, 1 / 3)])
def test_connections_are_priced_by_the_fastest_of_the_sparse_kernels(times: float, fastest: float) -> None:
    """Another kernel than csr, which takes so many times as long as that."""

    def csr(times: float, name: str = "csr") -> tuple[KernelTime, ...]:
        found = (time for time in profile.kernels if "csr" in time.kernel)
        return tuple(replace(time, kernel=time.kernel.replace("csr", name), seconds=times * time.seconds) for time in found)

    profile = preset("pcie-2")
    rest = tuple(time for time in profile.kernels if "csr" not in time.kernel)
    both = replace(profile, kernels=(*profile.kernels, *csr(times, "compiled")))
    alone = replace(profile, kernels=(*rest, *csr(fastest)))
    assert price_by_time(WORK, HALVES, both, 256) == pytest.approx(price_by_time(WORK, HALVES, alone, 256))


def test_a_feature_map_costs_all_its_values() -> None:
    profile = slower(preset(PRESETS[0]), 1e6)  # so slow that nothing but the bytes counts
    assert halo_unit_seconds(profile, 2, 64, 49) / halo_unit_seconds(profile, 2, 64, 1) == pytest.approx(49, rel=0.01)


def test_convolutions_have_a_price_too() -> None:
    spaces = (Space("in", 1, "input"), Space("a", 64, "hidden"), Space("b", 128, "hidden"))
    layers = (
        Connections("first", (64, 1, 3, 3), (Segment("a"),), (Segment("in"),), None, 64, 64),
        Connections("second", (128, 64, 3, 3), (Segment("b"),), (Segment("a"),), None, 64, 64),
    )
    work = Workload.of(sparse(Topology(spaces, layers), 0.1))
    assert 1 < price_by_time(work, PARTITIONERS["contiguous"](work, 2), preset(PRESETS[0]), 64) < np.inf


def test_a_price_to_train_by_is_that_of_the_density_asked_for_finite_and_nothing_where_nothing_crosses() -> None:
    profile, dense = preset(PRESETS[0]), Workload.of(mlp(20, 256, 256, 10))
    assert machine_price(dense, 0.1, 2, profile, 256) == pytest.approx(price_by_time(WORK, HALVES, profile, 256), rel=0.01)
    assert machine_price(dense, 0.1, 1, profile, 256) == machine_price(Workload.of(mlp(3, 8, 2)), 0.1, 2, profile, 256) == 0
    assert machine_price(dense, 0.1, 2, latency_alone(profile), 256) == sum(layer.connections for layer in WORK.layers)


def test_where_latency_is_all_a_halo_unit_is_worth_any_number_of_connections() -> None:
    assert price_by_time(WORK, HALVES, latency_alone(preset(PRESETS[0])), 256) > 1e6


@pytest.mark.parametrize("work", [WORK, Workload.of(mlp(3, 8, 2))])
def test_where_nothing_can_cross_there_is_no_price(work: Workload) -> None:
    whole = Partition({space: np.zeros(work.units[space], np.int64) for space in work.hidden}, 1)
    with pytest.raises(ValueError, match="partition lets nothing cross, but must have at least 2 parts"):
        price_by_time(work, whole, preset(PRESETS[0]), 8)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch is 0, but must be at least 1"):
        price_by_time(WORK, HALVES, preset(PRESETS[0]), 0)
