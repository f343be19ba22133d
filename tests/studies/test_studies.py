from __future__ import annotations

import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from search.definition import DataSource, StudyDefinition, check_reference
from studies import models
from studies.digits import digits
from studies.mnist import mnist
from tests.contracts.study import StudyContract

STRANGER = Path(__file__).with_name("stranger.py")


class TestMnist(StudyContract):
    @pytest.fixture
    def study(self) -> StudyDefinition:
        return mnist


class TestDigits(StudyContract):
    @pytest.fixture
    def study(self) -> StudyDefinition:
        return digits


class TestStranger(StudyContract):
    @pytest.fixture
    def study(self) -> StudyDefinition:
        return check_reference(f"{STRANGER}:circle").load()


def test_a_strangers_study_is_twenty_lines() -> None:
    assert len(STRANGER.read_text().splitlines()) <= 20


def test_data_in_memory_is_hashed_by_its_content() -> None:
    study = check_reference(f"{STRANGER}:circle").load()
    task = study.task(study.data(None), 8, 0)
    (validation,) = task.validation()
    source = study.data(None)
    assert source == DataSource("circle", source.sha256, None, 2000, 500, 500)
    validation[0][0] += 1  # the tensor that the study holds
    assert study.data(None).sha256 != source.sha256
    with pytest.raises(ValueError, match="brings its own data"):
        study.data(Path("/somewhere"))


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (models.mlp_1024x3, 784 * 1024 + 2 * 1024**2 + 1024 * 10),
        (models.lenet_300_100, 266_200),
        (models.lenet_5, 430_500),
        (models.mlp_64x2, 2 * 64**2 + 64 * 10),
    ],
)
def test_the_start_networks_have_the_weights_of_their_papers(make: type[torch.nn.Module], weights: int) -> None:
    assert sum(prod(parameter.shape) for name, parameter in make().named_parameters() if name.endswith("weight")) == weights


def test_mnist_images_are_standardised() -> None:
    inputs = torch.cat([inputs for inputs, _ in mnist.task(mnist.data(None), 100, 0).validation()])
    assert inputs.mean().abs() < 0.02
    assert (inputs.std() - 1).abs() < 0.02


def test_the_built_in_studies_find_their_data_without_torch_and_optuna() -> None:
    code = (
        "import sys; from studies.mnist import mnist; from studies.digits import digits; mnist.data(None); digits.data(None);"
        "assert not {'torch', 'optuna'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=STRANGER.parents[2])
