from dataclasses import replace

import numpy as np
import pytest
import torch

from grow.axes import Segment
from grow.topology import Space, Topology
from hardware.cost import Simulation, simulate
from hardware.devices import Device
from hardware.layout import Layout, strategy
from hardware.partition import Partition
from hardware.partitioners import PARTITIONERS
from hardware.profile import Profile
from hardware.profile.key import STRUCTURED
from hardware.profile.measurements import CollectiveTime, HaloTime, Overlap
from hardware.share import Shares
from hardware.step import BY_SAMPLE, Prices, step_tasks
from hardware.sweep import QUICK
from hardware.sweep.kernels import Bench
from hardware.workload import Workload
from tests.contracts.partitioner import sparse
from tests.contracts.schedules import critical_path_s
from tests.contracts.topologies import branched, convolutional, mlp
from tests.hardware.test_profile import BANDWIDTH, FLOP_S, LATENCY_S, OVERHEAD_S, made_up_profile

CPU = made_up_profile()


def gpus(count: int = 4) -> Profile:
    """The same rates, on devices that communicate while they compute."""
    profile = made_up_profile(count)
    return replace(profile, devices=tuple(Device("gpu", "cuda", n, 2**33, f"nowhere/gpu{n}") for n in range(count)))


WORK = Workload.of(mlp(10, 20, 20, 5))
HALVES = Partition({"s1": np.repeat([0, 1], 10), "s2": np.repeat([0, 1], 10)}, 2)
MIXED: dict[str, Layout] = {"s0": "batch", "s1": "batch", "s2": "units", "s3": "whole"}


def ends(found: Simulation) -> dict[str, float]:
    return {f"{span.task.name} {span.task.kind}": span.end_s for span in found.timeline.spans}


def test_from_batch_to_units_takes_an_exchange_there_and_back() -> None:
    step = simulate(WORK, MIXED, HALVES, CPU, 64).step
    sent = 32 * 20 * 4  # half of the samples, all units, since every unit of s2 reads them
    logits, gradients = 64 * 5 * 4, 4 * (10 * 20 + 20)
    compute = OVERHEAD_S + FLOP_S * (32 * 10 * 20 / 2 + 64 * 20 * 10 + 64 * 10 * 5)
    communication = 2 * (LATENCY_S + sent / BANDWIDTH) + sum(2 * (LATENCY_S + size / 2 / BANDWIDTH) for size in (logits, gradients))
    assert (step.compute_s, step.communication_s) == (pytest.approx(compute), pytest.approx(communication))
    assert step.halo_bytes_per_step == 2 * 2 * sent
    assert step.sum_bytes_per_step == 2 * (logits + gradients)


def test_layers_of_one_layout_send_nothing() -> None:
    whole = simulate(WORK, "single", None, CPU, 64)
    assert (whole.step.bytes_per_step, whole.link_bytes.tolist()) == (0, [[0]])
    assert all(span.task.kind != "communication" for span in whole.timeline.spans)


def test_on_gpus_gradients_are_summed_while_the_rest_is_computed() -> None:
    """Large gradients of the last layer go out first, under the backward pass of those before it."""
    work = Workload.of(mlp(600, 600, 600))
    found = simulate(work, "data", None, gpus(2), 512, 2)
    batch, product, ring = 256, FLOP_S * 600 * 600, 2 * (LATENCY_S + 600 * 600 * 4 / 2 / BANDWIDTH)
    small = 2 * 600 * 4 / 1e9 + LATENCY_S  # both biases, handed to the other
    forward, backward = batch * product * (1 / 4 + 1 / 3), OVERHEAD_S + batch * product * 2 / 3
    first = forward + backward  # the last layer's gradients are there
    end = max(first + ring, first + batch * product / 4) + ring + small  # and those of the first, after it on the same wires
    assert found.timeline.seconds == pytest.approx(end)
    assert found.timeline.seconds < simulate(work, "data", None, CPU, 512, 2).timeline.seconds


def test_on_gpus_that_compute_more_slowly_under_a_sum_the_step_takes_longer() -> None:
    """The backward pass of the first layer runs under the sum of the last one's gradients, at 2/3 of its rate."""
    work, slower = Workload.of(mlp(600, 600, 600)), replace(gpus(2), overlaps=(Overlap(2, 10**6, 6.0, 3.0, 7.0),))
    at_once, slowed = (simulate(work, "data", None, profile, 512, 2) for profile in (gpus(2), slower))
    first, ring = FLOP_S * 256 * 600 * 600 / 4, 2 * (LATENCY_S + 600 * 600 * 4 / 2 / BANDWIDTH)
    assert first > ring
    assert slowed.timeline.seconds - at_once.timeline.seconds == pytest.approx(ring / 3)
    assert slowed.step.bytes_per_step == at_once.step.bytes_per_step


def test_on_gpus_a_layer_begins_with_its_own_units() -> None:
    found = ends(simulate(WORK, "model", HALVES, gpus(2), 64))
    first = FLOP_S * 64 * 10 * 10 / 4  # half of a step without the gradient of the input
    own = first + FLOP_S * 64 * 10 * 10 / 3
    halo = first + LATENCY_S + 64 * 10 * 4 / BANDWIDTH
    assert found["fc2 own units forward"] == pytest.approx(own)
    assert found["fc2 forward"] == pytest.approx(max(own, halo) + FLOP_S * 64 * 10 * 10 / 3)


@pytest.mark.parametrize("units", [20, 2000])
def test_on_gpus_gradients_of_a_halo_are_under_way_while_those_of_the_own_units_are_computed(units: int) -> None:
    """As `hardware.execute.overlap` does; with few units the message is what the first layer waits for, with many the products."""
    halves = Partition({space: np.repeat([0, 1], units // 2) for space in ("s1", "s2")}, 2)
    found = ends(simulate(Workload.of(mlp(10, units, units, 5)), "model", halves, gpus(2), 64))
    product, last, first = (FLOP_S * 64 * units / 2 * columns for columns in (units / 2, 5, 10))
    halo = found["loss and optimizer overhead"] + 2 / 3 * (last + product)
    message = LATENCY_S + 64 * units / 2 * 4 / BANDWIDTH
    assert found["fc2 backward"] == pytest.approx(halo)
    assert found["fc2 own units backward"] == pytest.approx(halo + 2 / 3 * product)
    assert found["fc1 backward"] == pytest.approx(halo + max(message, 2 / 3 * product) + first / 4)
    assert (message < 2 / 3 * product) == (units == 2000)


def test_a_layer_that_reads_all_units_of_its_own_samples_waits_for_them_on_gpus_too() -> None:
    layouts: dict[str, Layout] = {"s0": "whole", "s1": "units", "s2": "batch", "s3": "batch"}
    found = simulate(WORK, layouts, HALVES, gpus(2), 64).timeline.spans
    arrived = max(span.end_s for span in found if span.task.name.endswith("units to batch forward"))
    assert min(span.begin_s for span in found if span.task.name.startswith("fc2")) == arrived
    assert not any("own units" in span.task.name for span in found)


def test_a_halo_takes_the_time_of_the_layout_that_the_kernel_before_it_leaves() -> None:
    """There and back 1 ns a byte where sparse products computed them, and in maps, and 100 ns where dense ones did."""
    rates = {True: 1e-9, False: 1e-7}
    halos = tuple(HaloTime(2, 1, size, size * rate, 0.0, by_unit) for size in (10**8, 10**9) for by_unit, rate in rates.items())
    exchanges = tuple(CollectiveTime("exchange", 2, size, 1e-9) for size in (1, 10**9))
    profile = replace(CPU, halos=halos, collectives=exchanges)
    thin, maps = Workload.of(sparse(mlp(10, 20, 20, 5), 0.05)), Workload.of(convolutional())
    parts = Partition({space: np.arange(maps.units[space]) % 2 for space in maps.hidden}, 2)
    for work, partition, by_unit in ((WORK, HALVES, False), (thin, HALVES, True), (maps, parts, True)):
        spans = simulate(work, "model", partition, profile, 64).timeline.spans
        first = next(span for span in spans if span.task.name.endswith("units to units forward"))
        whole = first.task.size_bytes * rates[by_unit] / 2  # one way, if one device sent all
        assert whole / 2 * 0.99 <= first.end_s - first.begin_s <= whole * 1.01


@pytest.mark.parametrize("kernel", ["dense", "csr", "compiled", *STRUCTURED])
def test_kernels_leave_outputs_sample_by_sample_or_unit_by_unit_as_the_simulator_takes_it(kernel: str) -> None:
    layer = Bench(torch.device("cpu"), torch.float32, QUICK).linear_layer(kernel, 128, 128, 0.25)
    y = layer(torch.ones(64, 128))
    assert y.stride(1 if kernel in BY_SAMPLE else 0) == 1


def test_what_is_not_executed_before_its_halo_is_there_is_not_simulated_so() -> None:
    """Sparse products take all columns at once, and layers that read one value wait for it together."""
    thin = Workload.of(sparse(mlp(10, 20, 20, 5), 0.04))
    (first, second, last), parts = mlp(10, 20, 20, 5).layers, {**HALVES.parts, "s4": np.repeat([0, 1], 10)}
    spaces = (*mlp(10, 20, 20, 5).spaces, Space("s4", 20, "hidden"))
    other = replace(second, layer="other", target=(Segment("s4"),))
    layers = (first, replace(second, value="s1"), replace(other, value="s1"), last)
    shared = Workload.of(Topology(spaces, layers))
    for work, partition in ((thin, HALVES), (shared, Partition(parts, 2))):
        found = simulate(work, "model", partition, gpus(2), 64)
        assert any("forward" in span.task.name for span in found.timeline.spans if span.task.kind == "communication")
        assert not any("own units" in span.task.name for span in found.timeline.spans)


@pytest.mark.parametrize("profile", [CPU, gpus()])
@pytest.mark.parametrize("topology", [mlp(5, 12, 9, 7, 3), convolutional(), branched()])
@pytest.mark.parametrize("name", ["data", "model", "owt"])
def test_no_step_is_faster_than_its_critical_path_and_its_busiest_device(profile: Profile, topology: object, name: str) -> None:
    work = Workload.of(sparse(topology, 0.4))  # type: ignore[arg-type]
    partition = PARTITIONERS["contiguous"](work, 3)
    prices = Prices(Shares(work, partition, 3, 16), profile)
    tasks = step_tasks(prices, strategy(work, name))
    found = simulate(work, name, partition, profile, 16, 3)
    assert found.timeline.seconds >= max(critical_path_s(tasks), found.step.compute_s) * (1 - 1e-12)
    assert found.timeline.seconds <= sum(task.seconds for task in tasks)
    assert found.timeline == simulate(work, name, partition, profile, 16, 3).timeline


@pytest.mark.parametrize("topology", [mlp(5, 12, 9, 7, 3), convolutional()])
@pytest.mark.parametrize("name", ["data", "model", "owt"])
def test_the_bytes_of_all_links_are_those_of_the_messages(topology: object, name: str) -> None:
    work = Workload.of(sparse(topology, 0.4))  # type: ignore[arg-type]
    partition = PARTITIONERS["contiguous"](work, 3)
    found = simulate(work, name, partition, gpus(), 16, 3)
    sent = sum(span.task.size_bytes for span in found.timeline.spans if span.task.kind == "communication")
    assert sent == found.link_bytes.sum() == found.step.bytes_per_step  # all are small: no ring


def test_the_memory_of_a_device_is_its_weights_values_and_what_it_is_sent() -> None:
    found = simulate(WORK, "model", HALVES, CPU, 64)
    weights = 3 * (10 * 10 + 10 + 20 * 10 + 10 + 10 * 5 + 5)
    values = 2 * 64 * (10 + 10 + 5)
    assert found.memory_bytes.tolist() == [4 * (weights + values + 64 * 10)] * 2
