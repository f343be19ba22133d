"""From recipes to trainings: what a seed starts from, and where its schedule leads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grow.history import History
from grow.train import train
from search import build
from search.definition import StudyReference
from search.errors import ConfigurationError, RunNotFoundError
from search.recipe import Recipe


@pytest.fixture(scope="module")
def base() -> Recipe:
    source = StudyReference("digits").load().data(None)
    return Recipe(
        study="digits",
        network="mlp-64x2",
        data_dir=None if source.folder is None else str(source.folder),
        data_sha256=source.sha256,
        number=2,
        role="search",
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


def test_an_interval_that_leaves_no_update_is_named(base: Recipe) -> None:
    with pytest.raises(ConfigurationError, match=r"^update_interval is 70, but must be at most 60"):
        build.session(build.material(replace(base, initial="dense", update_interval=70)), None, History())


def test_a_checkpointless_folder_is_named(base: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="holds no checkpoint"):
        build.trained_network(build.material(base), tmp_path)


def test_other_data_than_the_recipes_are_refused(base: Recipe) -> None:
    with pytest.raises(ValueError, match=r"^data of digits has sha256 .* but must have 0000"):
        build.material(replace(base, data_sha256="0000"))
