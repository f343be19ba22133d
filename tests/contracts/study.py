"""What every study must keep. A test class subclasses ``StudyContract`` and supplies the fixture ``study``."""

from __future__ import annotations

from itertools import islice

import optuna
import pytest
import torch
from torch import Tensor

from grow.task import Task
from search.definition import DataSource, StudyDefinition
from search.recipe import Recipe
from search.space import suggest


def _fingerprints(inputs: Tensor) -> list[bytes]:
    return [sample.contiguous().numpy().tobytes() for sample in inputs]


class StudyContract:
    """Tests of a study's data, task, start networks and ranges."""

    @pytest.fixture
    def study(self) -> StudyDefinition:
        raise NotImplementedError

    @pytest.fixture
    def source(self, study: StudyDefinition) -> DataSource:
        return study.data(None)

    @pytest.fixture
    def task(self, study: StudyDefinition, source: DataSource) -> Task:
        return study.task(source, 16, 0)

    def test_the_data_is_the_same_each_time_and_found_again_in_its_folder(self, study: StudyDefinition, source: DataSource) -> None:
        assert study.data(None) == source
        assert study.data(source.folder) == source
        assert len(source.sha256) == 64

    def test_the_task_has_as_many_samples_as_the_data_says(self, source: DataSource, task: Task) -> None:
        assert sum(len(targets) for _, targets in task.validation()) == source.validation
        assert sum(len(targets) for _, targets in task.test()) == source.test
        assert source.train >= task.batch_size

    def test_no_sample_of_an_epoch_is_used_for_validation_or_test(self, source: DataSource, task: Task) -> None:
        training: set[bytes] = set()
        for step in range(source.train // task.batch_size):
            training.update(_fingerprints(task.train_batch(step)[0]))
        for inputs, _ in (*task.validation(), *task.test()):
            assert training.isdisjoint(_fingerprints(inputs))

    def test_a_batch_follows_from_the_seed_and_the_step(self, study: StudyDefinition, source: DataSource, task: Task) -> None:
        again, other = study.task(source, 16, 0), study.task(source, 16, 1)
        for step in (0, 7):
            inputs, targets = task.train_batch(step)
            assert inputs.shape[0] == targets.shape[0] == 16
            assert torch.equal(inputs, again.train_batch(step)[0])
            assert torch.equal(targets, again.train_batch(step)[1])
        assert not torch.equal(task.train_batch(0)[0], task.train_batch(1)[0])
        assert not torch.equal(task.train_batch(0)[0], other.train_batch(0)[0])

    def test_every_start_network_fits_the_task(self, study: StudyDefinition, task: Task) -> None:
        inputs, targets = task.train_batch(0)
        assert study.example().shape == inputs[:1].shape
        for name in study.networks:
            network = study.network(name)()
            outputs = network(inputs)
            loss = task.loss(outputs, targets)
            loss.backward()
            assert loss.ndim == 0
            assert task.correct(outputs, targets).shape == (16,)
            assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())

    @pytest.mark.parametrize("devices", [1, 2, 8])
    def test_everything_drawn_or_guessed_makes_a_recipe(self, study: StudyDefinition, devices: int) -> None:
        search = optuna.create_study(directions=["maximize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=0))
        guesses = study.guesses(devices)
        for guess in guesses:
            search.enqueue_trial(guess)
        for guess in (*guesses, *islice(iter(dict, None), 30)):
            values = suggest(search.ask(), study.ranges(devices), study.settings)
            recipe = Recipe(study=study.name, network=study.network_name(None), data_sha256="", number=2, role="search", **values)  # type: ignore[arg-type]
            assert recipe.devices <= devices
            assert guess.items() <= values.items()
