"""From recipes to trainings: what a seed starts from, and where its schedule leads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from grow.history import History
from grow.task import Samples
from grow.train import train
from hardware.partition import Partition, communication_volume
from hardware.partitioners.local_search import LocalSearch
from hardware.presets import preset
from hardware.workload import Workload
from search import build
from search.build import Material
from search.definition import StudyDefinition
from search.errors import ConfigurationError, RunNotFoundError
from search.recipe import Recipe
from tests.search.conftest import digits_recipe


@pytest.fixture(scope="module")
def base() -> Recipe:
    return digits_recipe(
        steps=80,
        batch_size=64,
        update_interval=10,
        density=0.2,
        optimizer="sgd",
        learning_rate=0.1,
    )


def finished(recipe: Recipe) -> build.Session:
    training = build.session(build.material(recipe), None, History())
    for _ in train(training):
        pass
    return training


@pytest.mark.parametrize("initial", ["dense", "erk", "radixnet", "minimal"])
def test_every_seed_ends_at_the_connections_asked_for(base: Recipe, initial: str) -> None:
    possible = build.start_network(build.material(base)).topology.possible
    training = finished(replace(base, initial=initial))
    assert training.network.topology.connections == round(0.2 * possible)


def test_a_recipe_that_autocasts_trains_so_and_says_that_the_profile_does_not_know_it(base: Recipe) -> None:
    chosen = replace(base, steps=20, autocast=True)
    training, plain = finished(chosen), finished(replace(chosen, autocast=False))
    assert training.autocast == torch.bfloat16
    assert training.history.events[-1].loss_after != plain.history.events[-1].loss_after
    assert not training.network.compiled
    told = build.figures(training, chosen, preset("nvlink-8"))
    assert "autocast is True, but the profile's times are of layers without it" in told.beyond


@pytest.mark.slow  # torch's compiler takes its time
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_training_is_the_other_one_but_for_rounding(base: Recipe) -> None:
    found = finished(replace(base, compile=True))
    expected = finished(base)
    assert found.network.compiled
    assert [event.what for event in found.history.events] == [event.what for event in expected.history.events]
    losses = [[event.loss_after for event in training.history.events] for training in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-2)


def test_a_minimal_seed_grows_units_however_long_the_interval(base: Recipe) -> None:
    material = build.material(replace(base, initial="minimal", update_interval=70))
    before = build.session(material, None, History()).network.topology.units
    after = finished(material.recipe).network.topology.units
    assert all(after[space] > before[space] for space in ("fc1", "fc2"))


def test_a_minimal_seed_has_a_unit_for_every_device(base: Recipe) -> None:
    recipe = replace(base, initial="minimal", devices=20, strategy="units", partitioner="contiguous")
    training = build.session(build.material(recipe), None, History())
    assert training.network.parts is not None
    for parts in training.network.parts.values():
        np.testing.assert_array_equal(np.unique(parts), np.arange(20))


def test_partition_and_price_know_the_links_between_two_servers(base: Recipe) -> None:
    recipe = replace(base, initial="erk", devices=16, strategy="units", partitioner="metis")
    pytest.importorskip("pymetis")
    aware, unaware = (build.session(build.material(recipe), profile, History()).network for profile in (preset("infiniband-2x8"), None))
    assert aware.ways is not None
    assert unaware.ways is None
    assert aware.ways[0, 15] > build.UNEVEN * aware.ways[0, 7]
    work = Workload.of(aware.topology)
    paid = []
    for network in (aware, unaware):
        assert network.parts is not None
        paid.append(LocalSearch(work, Partition(network.parts, 16), 0.05, aware.ways).cost())
    assert paid[0] < paid[1]


@pytest.mark.parametrize("name", ["model", "owt"])
def test_other_strategies_that_divide_units_have_the_parts_and_figures_of_the_older_name(base: Recipe, name: str) -> None:
    found = []
    for strategy in ("units", name):  # without convolutions they are all the same
        recipe = replace(base, initial="erk", devices=2, strategy=strategy, partitioner="contiguous")
        training = build.session(build.material(recipe), None, History())
        found.append((build.figures(training, recipe, preset("pcie-2")), training.network.parts))
    assert found[0][0] == found[1][0]
    assert {space: parts.tolist() for space, parts in found[0][1].items()} == {
        space: parts.tolist() for space, parts in found[1][1].items()
    }


def test_what_stays_as_it_is_is_predicted_alike_on_the_way_and_at_the_end_norms_and_pooling_included(base: Recipe) -> None:
    def convnet() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))

    samples = Samples(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10)
    images = StudyDefinition.from_samples("images", samples, samples, samples, networks={"convnet": convnet})
    for chosen in (base, replace(base, devices=2, strategy="data")):
        recipe = replace(chosen, network="convnet", initial="dense", density=1.0)
        training = build.session(Material(recipe, images, images.task(images.data(None), 64, 0)), preset("nvlink-8"), History())
        so_far = build.throughput_so_far(training, recipe, preset("nvlink-8"))
        assert so_far == build.figures(training, recipe, preset("nvlink-8")).predicted_samples_per_s


def test_links_that_are_as_good_as_even_change_nothing(base: Recipe) -> None:
    recipe = replace(base, initial="erk", devices=4, strategy="units", partitioner="contiguous")
    assert build.session(build.material(recipe), preset("nvlink-8"), History()).network.ways is None


def test_a_profile_of_fewer_devices_than_the_recipe_asks_for_is_refused(base: Recipe) -> None:
    recipe = replace(base, initial="erk", devices=3, strategy="units", partitioner="contiguous")
    with pytest.raises(ValueError, match="parts is 3, but must be 1 to 2, the devices of the graph"):
        build.session(build.material(recipe), preset("pcie-2"), History())


def test_new_units_come_where_they_cost_least(base: Recipe) -> None:
    recipe = replace(base, initial="erk", devices=2, strategy="units", partitioner="contiguous", imbalance=0.5)
    network = build.session(build.material(recipe), None, History()).network
    network.add_units("fc2", 1, torch.Generator().manual_seed(0), 5, 2)
    assert network.parts is not None
    work, parts = Workload.of(network.topology), network.parts
    other = {**parts, "fc2": np.concatenate([parts["fc2"][:-1], 1 - parts["fc2"][-1:]])}
    assert communication_volume(work, Partition(parts, 2)) <= communication_volume(work, Partition(other, 2))


def test_an_interval_that_leaves_no_update_is_named(base: Recipe) -> None:
    with pytest.raises(ConfigurationError, match=r"^update_interval is 70, but must be at most 60"):
        build.session(build.material(replace(base, initial="dense", update_interval=70)), None, History())


def test_a_folder_without_a_whole_checkpoint_is_named_and_what_is_to_be_done_depends_on_whether_its_training_has_ended(
    base: Recipe, tmp_path: Path
) -> None:
    folder, material = tmp_path / "checkpoint", build.material(base)
    with pytest.raises(RunNotFoundError, match=r"/checkpoint holds no checkpoint, but must; resume the run, which trains it$"):
        build.trained_network(material, folder)
    (folder / "00000010").mkdir(parents=True)
    with pytest.raises(RunNotFoundError, match=r"holds 1 checkpoints, but none is whole; resume the run, which trains it$"):
        build.trained_network(material, folder)
    (tmp_path / "result.json").touch()
    with pytest.raises(RunNotFoundError, match=rf"none is whole; put one back from a copy, or train .* with: grow train {tmp_path}$"):
        build.trained_network(material, folder)


def test_other_data_than_the_recipes_are_refused(base: Recipe) -> None:
    with pytest.raises(ValueError, match=r"^data of digits has sha256 .* but must have 0000"):
        build.material(replace(base, data_sha256="0000"))
