"""How units are divided among ranks after edits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from grow import optim
from grow.history import History
from grow.train import train
from hardware.partition import Partition, imbalance
from hardware.partitioners.incremental import moved_values
from hardware.partitioners.local_search import LocalSearch
from hardware.presets import preset
from hardware.workload import Workload
from search import build
from search.divide import Divider
from search.recipe import Recipe
from tests.contracts.topologies import mlp
from tests.search.conftest import digits_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return digits_recipe(
        steps=40,
        update_interval=10,
        density=0.2,
        devices=2,
        strategy="units",
        partitioner="contiguous",
        imbalance=0.1,
    )


def test_as_many_ranks_as_parts_use_the_parts_that_the_network_grows_along(recipe: Recipe) -> None:
    network = build.session(build.material(recipe), None, History()).network
    assert Divider(network, recipe, 2)(network) is network.parts
    assert Divider(network, recipe, 1)(network) is None


def test_parts_of_another_number_of_ranks_follow_edits_and_stay_balanced(recipe: Recipe) -> None:
    network = build.session(build.material(recipe), None, History()).network
    divide = Divider(network, recipe, 3)
    before = divide(network)
    assert before is not None
    before = dict(before)
    assert all(sorted(set(part.tolist())) == [0, 1, 2] for part in before.values())
    network.remove_units("fc1", [5, 40])
    again = divide(network)
    assert again is not None
    kept = np.delete(before["fc1"], [5, 40])
    assert (again["fc1"] != kept).sum() <= 2  # what balance asks for, no more
    np.testing.assert_array_equal(again["fc2"], before["fc2"])
    assert network.parts is not None
    assert max(part.max() for part in network.parts.values()) == 1  # its own labels are as they were
    work = Workload.of(network.topology)
    assert imbalance(work, Partition(again, 3), "fc1") <= 0.1


def test_parts_of_another_number_of_ranks_know_what_the_links_between_them_cost(recipe: Recipe) -> None:
    """Sixteen devices of two servers: halves that say much to each other come to one server."""
    recipe = replace(recipe, partitioner="metis", initial="erk")
    pytest.importorskip("pymetis")
    profile = preset("infiniband-2x8")
    costs = build.link_costs(profile, 16)
    assert costs is not None
    paid = []
    for known in (profile, preset("pcie-2"), None):
        network = build.session(build.material(recipe), None, History()).network
        parts = Divider(network, recipe, 16, known)(network)
        assert parts is not None
        paid.append(LocalSearch(Workload.of(network.topology), Partition(dict(parts), 16), 0.1, costs).cost())
    assert paid[0] < paid[1] == paid[2]  # two devices tell nothing of sixteen


@pytest.mark.parametrize("optimizer", optim.MOMENTS)
def test_a_unit_moves_where_the_copies_saved_are_worth_its_weights_with_all_that_the_optimizer_keeps_of_them(
    recipe: Recipe, optimizer: optim.Name
) -> None:
    """Two units of 21 values each are read on the other part alone, and trade places, or their readers of 22 values do."""
    ring = np.arange(4)
    layers = mlp(20, 4, 4, 20).with_index({"fc1": None, "fc2": 5 * ring, "fc3": None})
    work, old = Workload.of(layers), {"s1": np.array([0, 0, 1, 1]), "s2": np.array([1, 0, 0, 1])}
    moved = 21 * (1 + optim.MOMENTS[optimizer])  # values, for one value there and one back, of every sample of every step
    for steps, stays in ((moved // 2 - 1, True), (moved // 2 + 1, False)):
        asked = replace(recipe, optimizer=optimizer, batch_size=1, update_interval=steps)
        after = build.repartitioned(asked, work, old, 2)
        assert (moved_values(work, old, after) == 0) == stays


def test_repartition_after_every_update_keeps_the_parts_balanced(recipe: Recipe) -> None:
    session = build.session(build.material(replace(recipe, repartition=True, pattern="source_group", price=1.0)), None, History())
    for _ in train(session):
        pass
    work, parts = Workload.of(session.network.topology), session.network.parts
    assert parts is not None
    assert all(imbalance(work, Partition(parts, 2), space) <= 0.1 + 1e-9 for space in work.hidden)
