"""The same devices on a fast and on a slow link: price, strategy and the network that is found react."""

from __future__ import annotations

import json
from pathlib import Path

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
from search.errors import ConfigurationError
from search.launch import Wanted, _order, _prepare
from search.prepare import price_is_idle
from search.space import Choice, Float, Range
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import mlp
from tests.search.conftest import Grow, digits_recipe

CORE = Chip("core", 8 * 10**9, 1e11, 2e10, 0.7, 0.1, 5e-6)
FAST, SLOW = 1e10, 2.5e6  # bytes/s, the slow one 20 Mbit/s


def machine(bytes_per_s: float) -> Profile:
    """Two cores and a cable."""
    return Machine("two", 1, 2, CORE, Wire("cable", 1e-5, bytes_per_s, bytes_per_s), None, 5e-6, 2e-4, 1.0, {}).profile()


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
            pattern="source_group", price="machine",
        )  # fmt: skip
        training = build.session(build.material(recipe), machine(bytes_per_s), History())
        for _ in train(training):
            pass
        parts = training.network.parts
        assert parts is not None
        found.append(crossing_units(Workload.of(training.network.topology), Partition(parts, 2)))
    assert found[1] < found[0] / 2


def test_a_training_goes_on_by_the_price_of_the_machine_that_it_began_on(tmp_path: Path) -> None:
    recipe = digits_recipe(steps=40, density=0.2, devices=2, strategy="units", pattern="source_group", price="machine")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    orders = []
    for name, bytes_per_s in (("fast", FAST), ("slow", SLOW)):
        machine(bytes_per_s).save(tmp_path / name)
        orders.append(_order(Wanted(tmp_path, hardware=tmp_path / name), recipe, tmp_path / "recipe.json", 2))
    fast, slow = (order["recipe"]["price"] for order in orders)
    assert slow > 100 * fast > 0
    _prepare(tmp_path / "out", orders[0]["recipe"], resume=False)
    with pytest.raises(ConfigurationError, match="must hold a training of this recipe"):
        _prepare(tmp_path / "out", orders[1]["recipe"], resume=True)


@pytest.mark.slow
def test_a_run_with_the_price_of_the_machine_comes_to_its_end_with_fewer_crossing_units_on_the_slow_link(
    grow: Grow, tmp_path: Path
) -> None:
    settings = ("steps=40", "update_interval=5", "initial=erk", "pattern=source_group", "devices=2", "strategy=units", "price=machine")
    chosen = [word for setting in settings for word in ("--set", setting)]
    crossing = []
    for name, bytes_per_s in (("fast", FAST), ("slow", SLOW)):
        machine(bytes_per_s).save(tmp_path / name)
        budget = ("--gpus", "2", "--trials", "3", "--tolerance", "100", "--name", name, "--hardware", name)
        done = grow("run", "--study", "digits", *budget, *chosen, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        searched = json.loads(done.stdout)["trials"][2]
        assert (searched["state"], searched["recipe"]["price"]) == ("complete", "machine")
        crossing.append(searched["crossing_units"])
    assert crossing[1] < crossing[0] / 2


def test_the_price_of_a_machine_that_is_not_known_is_refused() -> None:
    recipe = digits_recipe(steps=40, devices=2, strategy="units", pattern="source_group", price="machine")
    with pytest.raises(ConfigurationError, match="price is 'machine', but must be a number without a profile"):
        build.session(build.material(recipe), None, History())


@pytest.mark.parametrize(
    ("settings", "ranges", "devices", "idle"),
    [
        ({"price": "machine", "pattern": "source_group", "strategy": "units"}, {}, 2, False),
        ({"price": "machine", "pattern": "source_group"}, {"strategy": Choice(("data", "owt"))}, 2, False),
        ({"price": "machine", "pattern": "source_group", "layouts": {"fc1": "units"}, "strategy": "mixed"}, {}, 2, False),
        ({"price": "machine", "pattern": "source_group", "strategy": "data"}, {}, 2, True),
        ({"price": "machine", "pattern": "source_group", "strategy": "units"}, {}, 1, True),
        ({"price": "machine", "pattern": "source_group", "strategy": "units", "devices": 1}, {}, 2, True),
        ({"price": 3.0, "pattern": "block_4x4", "strategy": "units"}, {}, 2, True),
        ({"price": 3.0, "strategy": "units"}, {}, 2, True),  # unstructured, as where nobody says otherwise
        ({"price": 0.0, "strategy": "units"}, {}, 2, False),
        ({"strategy": "units"}, {"price": Float(1, 2)}, 2, True),
        ({"pattern": "source_group", "strategy": "units"}, {"price": Float(1, 2)}, 1, False),  # left out where there is one device
    ],
)
def test_a_price_that_no_trial_can_have_is_noted(settings: dict[str, object], ranges: dict[str, Range], devices: int, idle: bool) -> None:
    assert price_is_idle(settings, ranges, devices) == idle


def test_the_planner_leaves_the_second_device_where_the_link_costs_more_than_it_gives() -> None:
    work = Workload.of(mlp(784, 512, 512, 512, 10))
    best = {
        rate: plan(work, machine(rate), 2, 128, lambda work, parts: PARTITIONERS["contiguous"](work, parts)).best for rate in (FAST, SLOW)
    }
    assert best[FAST].devices == 2
    assert (best[SLOW].name, best[SLOW].devices) == ("single", 1)
