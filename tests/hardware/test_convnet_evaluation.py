"""The ConvNets that the evaluation times and trains are what it says that they are."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from grow.train import train
from hardware.partition import communication_volume, crossing_share
from hardware.workload import Workload
from tests.benchmarks import convnet_evaluation, convnet_recipe
from tests.benchmarks.convnet_evaluation import Case, Findings, Side, Structure, picture, planted, selected, simulated, timed_job
from tests.benchmarks.convnet_recipe import Aim, evened, policy_of, recipe, session, structure_of
from tests.hardware.test_profile import made_up_profile

AIM = Aim("lenet-5", 2, 0.5, 0.25)


def test_a_part_reads_its_own_units_and_those_that_it_is_said_to_read() -> None:
    parts = {"conv1": [0, 1, 1], "conv2": [1, 0], "fc1": [0, 1]}
    network = Structure("lenet-5", parts, {"conv1": [[0, 1]], "conv2": [], "fc1": []}).built()
    assert network.topology.units == {"input": 1, "conv1": 3, "conv2": 2, "fc1": 2, "output": 10}
    joined = {name: (network.layers[name].dense_weight() != 0) for name in ("conv1", "conv2", "fc1", "fc2")}
    assert joined["conv2"].flatten(2).all(2).tolist() == [[True, True, True], [True, False, False]]  # channel 0 is read by part 1
    assert torch.equal(joined["conv2"].flatten(2).any(2), joined["conv2"].flatten(2).all(2))  # by all taps or by none
    assert joined["fc1"].unflatten(1, (2, 16)).all(2).tolist() == [[False, True], [True, False]]
    assert joined["conv1"].all()
    assert joined["fc2"].all()


@pytest.mark.parametrize("parts", [2, 4])
def test_what_is_planted_has_the_units_and_the_crossing_ones_that_are_aimed_at(parts: int) -> None:
    aim = Aim("lenet-5", parts, 0.5, 0.25)
    structure = planted(aim)
    network, partition = structure.built(), structure.partition
    work = Workload.of(network.topology)
    hidden = {space.name: space.units for space in network.topology.hidden}
    assert partition is not None
    assert hidden == aim.units(Structure("lenet-5").built().topology)
    assert all(np.ptp(np.bincount(labels)) == 0 for labels in partition.parts.values())
    groups = {space: hidden[space] * (parts - 1) for space in ("conv1", "conv2")}  # of a unit and another part
    assert communication_volume(work, partition) == sum(round(0.25 * count) for count in groups.values())
    assert all(share >= 0.2 for share in crossing_share(work, partition).values())


def test_units_are_evened_out_and_no_more_are_moved_than_must() -> None:
    assert evened(np.array([0, 1, 0, 1]), 2).tolist() == [0, 1, 0, 1]
    assert evened(np.array([1, 1, 1, 1, 1]), 3).tolist() == [1, 1, 0, 2, 0]


def test_the_policy_ends_at_the_connections_that_the_structure_has() -> None:
    start, structure = Structure("lenet-5").built().topology, planted(AIM)
    policy, network = policy_of(AIM, start, 400), structure.built()
    largest = 12 * 25 + 125 * 16  # a group of each layer
    assert abs(policy.connections(400) - network.topology.connections) <= largest
    assert policy.connections(1) == start.possible
    assert {space: round(target(400)) for space, target in policy.units.items()} == AIM.units(start)


@pytest.mark.slow
def test_training_finds_what_it_aims_at() -> None:
    arguments = argparse.Namespace(network="lenet-5", data_dir=None, steps=40, batch=16, learning_rate=0.05)
    training = session(recipe(arguments, 2, 0), AIM)
    start = training.network.topology
    policy = policy_of(AIM, start, 40)
    for _ in train(training):
        pass
    network, found = training.network, structure_of(training.network)
    assert {space.name: space.units for space in network.topology.hidden} == AIM.units(start)
    assert all(np.ptp(np.bincount(labels)) == 0 for labels in found["parts"].values())
    assert network.topology.connections == round(policy.connections(40))
    assert training.history.total("grow_connections") > 0  # groups were exchanged
    whole = Structure("lenet-5", **found).built()
    for name in ("conv2", "fc1"):  # what is read is read whole, but for what the exact count leaves over of one group
        layer, group = network.topology.layer(name), {"conv2": 12 * 25, "fc1": 125 * 16}[name]
        assert 0 <= whole.topology.layer(name).count - layer.count < group


def test_sides_travel_as_text() -> None:
    side = Side(planted(AIM), "model", 2, inference=True)
    assert Side.of(side.text).text == side.text
    job = timed_job(side.text)
    assert (job.devices, job.inference, len(job.targets)) == (2, True, convnet_evaluation.BATCH)


def test_a_simulated_row_says_so_and_carries_the_accuracies_that_were_found() -> None:
    lines = [
        {"network": "lenet-5", "parts": parts, "seed": seed, "test": test, "structure": planted(AIM).__dict__}
        for parts, seed, test in ((1, 0, 99.0), (1, 1, 99.2), (2, 0, 98.9), (2, 1, 99.0))
    ]
    found = simulated(Case("lenet-5", "inference", "found", 4, "workers"), Findings(lines), made_up_profile(2))
    assert (found["case"]["word"], found["case"]["parts"], "accuracy" in found["case"]) == ("simulated", 4, False)
    assert found["ratio"] > 1
    accuracy = Findings(lines).accuracy("lenet-5", 2)
    assert accuracy["accuracy_difference"] == pytest.approx(-0.15)
    assert (accuracy["accuracy_difference_min"], accuracy["seeds"]) == (pytest.approx(-0.2), 2)
    shapes = picture([found])
    assert shapes.count("<rect") == 1 + 3 + 1  # ground, three colours of the legend, and the bar
    assert "lenet-5, inference" in shapes


def test_cases_are_selected_by_their_keys() -> None:
    assert len(selected(["network=lenet-5", "what=training", "machine=here"])) == len(convnet_evaluation.MEASURED)
    with pytest.raises(SystemExit, match="leaves no case, but must be of network=lenet-5"):
        selected(["network=lenet"])
    assert convnet_recipe.STUDY == "mnist"
