"""The same devices on a fast and on a slow link: price, strategy and the network that is found react."""

from __future__ import annotations

import pytest

from grow.history import History
from grow.train import train
from hardware.partition import Partition, crossing_units
from hardware.partitioners import PARTITIONERS
from hardware.planner import plan
from hardware.presets.roofline import Chip, Machine, Wire
from hardware.price import price_by_time
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import mlp
from tests.search.conftest import digits_recipe

CORE = Chip("core", 8 * 10**9, 1e11, 2e10, 0.7, 0.1, 5e-6)
FAST, SLOW = 1e10, 2.5e6  # bytes/s, the slow one 20 Mbit/s


def machine(bytes_per_s: float) -> Profile:
    """Two cores and a cable."""
    return Machine("two", 1, 2, CORE, Wire("cable", 1e-5, bytes_per_s, bytes_per_s), None, 5e-6, 2e-4, {}).profile()


def price_on(bytes_per_s: float) -> float:
    work = Workload.of(sparse(mlp(784, 512, 512, 512, 10), 0.3))
    return price_by_time(work, PARTITIONERS["contiguous"](work, 2), machine(bytes_per_s), 128)


def test_the_price_of_a_crossing_unit_grows_with_the_time_that_it_takes_on_the_link() -> None:
    """Where bytes are all that a message takes: half the bandwidth is twice the price."""
    assert price_on(SLOW) > 500 * price_on(FAST)
    assert price_on(SLOW / 2) == pytest.approx(2 * price_on(SLOW), rel=0.01)


def test_a_network_that_is_grown_for_the_slow_link_has_fewer_crossing_units() -> None:
    found = []
    for bytes_per_s in (FAST, SLOW):
        recipe = digits_recipe(
            steps=40, update_interval=5, density=0.2, initial="erk", devices=2, strategy="units", partitioner="contiguous",
            pattern="source_group", price=price_on(bytes_per_s),
        )  # fmt: skip
        training = build.session(build.material(recipe), None, History())
        for _ in train(training):
            pass
        parts = training.network.parts
        assert parts is not None
        found.append(crossing_units(Workload.of(training.network.topology), Partition(parts, 2)))
    assert found[1] < found[0] / 2


def test_the_planner_leaves_the_second_device_where_the_link_costs_more_than_it_gives() -> None:
    work = Workload.of(mlp(784, 512, 512, 512, 10))
    best = {
        rate: plan(work, machine(rate), 2, 128, lambda work, parts: PARTITIONERS["contiguous"](work, parts)).best for rate in (FAST, SLOW)
    }
    assert best[FAST].devices == 2
    assert (best[SLOW].name, best[SLOW].devices) == ("single", 1)
