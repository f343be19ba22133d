"""The networks that the benchmark of partitions trains are what it says that they are, and its rows say what was trained."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch

from hardware.partition import Partition, crossing_share, imbalance
from hardware.workload import Workload
from tests.benchmarks.blocks import Blocks
from tests.benchmarks.partition_speedup import (
    CASES,
    PARTS,
    SIMULATED,
    Case,
    Side,
    Training,
    accuracies,
    accuracy,
    by_kind,
    profile_of,
    reference_of,
    row,
    selected,
    simulated_row,
)

SIDE = Side(units=40, hidden=3, workers=2, density=1.0, crossing=0.12, batch=256)


def shares(side: Side) -> dict[str, float]:
    return crossing_share(Workload.of(side.network.topology), Partition(side.parts, PARTS))


def test_every_hidden_space_that_is_read_by_one_has_the_crossing_units_asked_for() -> None:
    assert shares(SIDE) == {"fc1": 6 / 40, "fc2": 6 / 40}  # 2.4 of the 20 units of a part, rounded up
    assert SIDE.crossing_share() == 6 / 40


def test_without_crossing_units_the_halves_never_talk() -> None:
    apart = replace(SIDE, crossing=0.0)
    assert shares(apart) == {"fc1": 0.0, "fc2": 0.0}
    module = apart.network.module
    half = torch.zeros(40, 40, dtype=torch.bool)
    half[:20, :20] = half[20:, 20:] = True
    for name in ("fc2", "fc3"):
        weight = module.get_submodule(name).dense_weight()  # type: ignore[operator]
        assert torch.equal(weight != 0, half)


def test_density_counts_inside_the_parts_and_leaves_the_outputs_complete() -> None:
    side = replace(SIDE, units=400, density=0.05, crossing=0.0)
    topology = side.network.topology
    assert [layer.layer for layer in topology.layers if layer.index is None] == ["fc4"]
    for layer in topology.layers[:-1]:
        inside = layer.possible if layer.layer == "fc1" else layer.possible / PARTS
        assert layer.count / inside == pytest.approx(0.05, rel=0.05)
    work = Workload.of(topology)
    assert all(imbalance(work, Partition(side.parts, PARTS), space) < 0.05 for space in work.hidden)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_weights_are_drawn_for_the_connections_that_a_unit_has(density: float) -> None:
    side = replace(SIDE, density=density)
    for name in ("fc1", "fc2", "fc3"):
        weight = side.network.layers[name].dense_weight().numpy()
        fan_in = np.maximum((weight != 0).sum(1), 1)
        bounds = np.abs(weight).max(1) * np.sqrt(fan_in)
        assert bounds.max() <= 1 + 1e-5
        assert np.std(weight[weight != 0] * np.sqrt(np.repeat(fan_in, fan_in))) == pytest.approx(1 / sqrt(3), rel=0.1)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_row_tells_the_case_and_what_it_was_measured_against(workers: int) -> None:
    found = row(replace(SIDE, workers=workers), seconds=0.05)
    assert found["case"] == {
        "units": 40,
        "workers": workers,
        "density": 1.0,
        "crossing": 6 / 40,
        "batch": 256,
        "device": "cpu",
        "word": "measured",
    }
    assert found["against"] == "dense nn.Linear on 1 worker"
    assert 0 < found["ratio_min"] <= found["ratio"] <= found["ratio_max"]


def test_strong_scaling_compares_the_same_network_on_one_worker() -> None:
    large = replace(SIDE, batch=512)
    alone = reference_of(large)
    assert alone == replace(large, workers=1)
    assert torch.equal(alone.network.layers["fc2"].dense_weight(), large.network.layers["fc2"].dense_weight())


@pytest.mark.slow
def test_a_row_of_strong_scaling_has_the_efficiency() -> None:
    found = row(replace(SIDE, batch=512), seconds=0.05)
    assert found["against"] == "itself on 1 worker"
    assert found["case"]["efficiency"] == pytest.approx(found["ratio"] / 2)


@pytest.mark.slow
def test_accuracies_are_paired_and_do_not_depend_on_the_workers() -> None:
    training = Training.on(None, steps=30, learning_rate=0.1, sparse_learning_rate=0.4, test=True)
    found = accuracies(SIDE, training, seeds=1)
    assert found["digits"] == "test"
    assert found["accuracy_difference"] == pytest.approx(float(found["accuracy"]) - float(found["dense_accuracy"]))
    assert min(float(found["accuracy"]), float(found["dense_accuracy"])) > 30  # both learn: chance is 10
    assert found["steps"] == 30
    assert accuracy(replace(SIDE, workers=1), training, 30, by_kind)["test"] == found["accuracy"]


@pytest.mark.parametrize("parts", [2, 4])
def test_blocks_compute_and_learn_what_the_network_does(parts: int) -> None:
    side = replace(SIDE, parts_count=parts)
    blocks, network = Blocks(side.network, side.parts), side.network
    inputs = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(blocks(inputs), network(inputs))
    for module in (blocks, network):
        module(inputs).square().sum().backward()
    part = side.parts["fc1"]
    whole = network.layers["fc1"].weight.grad
    for number, block in enumerate(blocks.first[0]):  # type: ignore[arg-type]
        torch.testing.assert_close(block.weight.grad, whole[torch.from_numpy(part == number)])
    computed = sum(block.weight.numel() for block in blocks.inner[0])  # type: ignore[union-attr]
    assert computed < 40 * 40 * (1 / parts + 0.5)


def test_four_parts_are_simulated_on_presets_and_say_so() -> None:
    found = {machine: simulated_row(Case(1024, 4, 1.0, 0.02, 4096), machine) for machine in SIMULATED}
    for machine, told in found.items():
        assert (told["case"]["word"], told["case"]["hardware"], told["case"]["workers"]) == ("simulated", machine, 4)
    assert 2 < found["pcie-4"]["ratio"] < found["infiniband-2x8"]["ratio"] < found["nvlink-8"]["ratio"] < 12  # the work is 12 times less


def test_of_two_hosts_two_devices_of_each_are_simulated() -> None:
    graph = profile_of("infiniband-2x8").graph
    within, between = ({graph.link(*pair).medium for pair in pairs} for pairs in (((0, 1), (2, 3)), ((0, 2), (0, 3), (1, 2), (1, 3))))
    assert (len(graph.devices), within, between) == (4, {"NVLink 4"}, {"InfiniBand NDR"})
    sums = {name: profile_of(name).collective_seconds("sum", 4, 2**30) for name in ("nvlink-8", "infiniband-2x8")}
    wire = 2 * 50e9  # one way out for each of the two devices of a host
    assert sums["infiniband-2x8"] == pytest.approx(2 * 3 / 4 * 2**30 / wire, rel=0.01)
    assert sums["nvlink-8"] < sums["infiniband-2x8"]


def test_accuracies_are_by_default_those_of_the_results() -> None:
    """Both sides of a case for five epochs, or three of sparse parts; the test digits are read."""
    training = Training.on(None, None, learning_rate=0.1, sparse_learning_rate=0.8)
    assert [training.steps_of(density) for density in (1.0, 0.05)] == [975, 585]
    assert list(training.judged(training.task(256, 0))) == ["validation", "test"]
    assert replace(training, steps=7).steps_of(1.0) == 7


def test_cases_are_selected_by_every_value() -> None:
    values = ["units=2048", "density=1.0", "crossing=0.02", "batch=256"]
    chosen, none = selected([*values, "workers=2"])
    assert [(case.units, case.workers, case.density, case.crossing, case.batch) for case in chosen] == [(2048, 2, 1.0, 0.02, 256)]
    assert none == []
    for nothing in ("units=7", "units=many"):
        with pytest.raises(SystemExit, match="leaves no case, but must be of units=2048"):
            selected([nothing])
    for wrong in ("unit=2048", "units"):
        with pytest.raises(SystemExit, match="must be KEY=VALUE with one of units, workers"):
            selected([wrong])


def test_simulated_cases_are_selected_without_those_by_the_clock() -> None:
    """The control without crossing units is among them."""
    four = Case(2048, 4, 0.05, 0.0, 4096)
    for values in (["workers=4"], ["word=simulated"]):
        only = [*values, "units=2048", "density=0.05", "crossing=0", "batch=4096"]
        assert selected(only) == selected(only, simulated=True) == ([], [(four, machine) for machine in SIMULATED])
    assert selected(["hardware=nvlink-8", "crossing=0", "batch=4096", "density=0.05", "units=2048"]) == ([], [(four, "nvlink-8")])
    timed, simulated = selected(["units=2048", "crossing=0.02", "batch=256", "density=1"], simulated=True)
    assert ([case.workers for case in timed], [machine for _, machine in simulated]) == ([1, 2], list(SIMULATED))
    assert selected(["word=measured"], simulated=True) == (list(CASES), [])
