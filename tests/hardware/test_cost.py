import copy
from dataclasses import replace
from types import FunctionType

import numpy as np
import pytest
import torch
from torch import nn

from grow import optim
from grow.kernels import KernelCase
from grow.network import Network
from hardware.cost import predict
from hardware.execute.exchange import Peers
from hardware.layout import strategy
from hardware.partition import Partition, bytes_per_step
from hardware.partitioners import PARTITIONERS
from hardware.profile import Profile
from hardware.profile.key import key_of
from hardware.profile.measurements import Contention, OperatorTime
from hardware.shard import shard
from hardware.share import Shares, layer_bytes, layer_seconds
from hardware.sweep.structures import drawn
from hardware.workload import IntArray, Workload
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import branched, convolutional, mlp
from tests.hardware.test_profile import BANDWIDTH, CSR_FLOP_S, FLOP_S, LATENCY_S, OVERHEAD_S, made_up_profile

PROFILE = made_up_profile()
COMPILED = pytest.param("compiled", marks=pytest.mark.slow)
MLP = mlp(10, 20, 20, 5)


def halves(separate: bool) -> tuple[Workload, Partition]:
    """20 units a space in two parts; the middle layer has no connection between them, or all."""
    side = np.repeat([0, 1], 10)
    index = np.flatnonzero((side[:, None] == side[None, :]).reshape(-1)) if separate else None
    return Workload.of(MLP.with_index({"fc2": index})), Partition({"s1": side, "s2": side}, 2)


def test_a_dense_network_on_one_device_takes_its_three_products_and_the_overhead() -> None:
    step = predict(Workload.of(MLP), "single", None, PROFILE, 64)
    products = 10 * 20 / 2 + 20 * 20 + 20 * 5  # the first layer needs no gradient of its input
    assert step.compute_s == pytest.approx(OVERHEAD_S + FLOP_S * 64 * products)
    assert (step.communication_s, step.bytes_per_step) == (0.0, 0)
    assert step.samples_per_s == pytest.approx(64 / step.total_s)


def test_the_faster_kernel_is_taken() -> None:
    thin, thick = (Workload.of(sparse(mlp(10, 100, 100, 5), density)) for density in (0.05, 0.5))
    shares = [Shares(work, None, 1, 64).of(work.layers[1], strategy(work, "single")) for work in (thin, thick)]
    names = [layer_seconds(local, PROFILE)[1] for (local,) in shares]
    assert names == ["csr", "dense"]


def same_columns(rows: int, columns: int, taps: int = 1) -> IntArray:
    """Every row reads the first tenth of the columns."""
    return np.flatnonzero(np.tile(np.arange(columns * taps) < columns * taps // 10, rows))


def with_columns() -> Profile:
    """With a kernel for whole columns, at the rate of dense products; small dense convolutions run at twice the rate of large ones."""
    of_columns = [
        replace(row, kernel=row.kernel.replace("csr", "columns"), seconds=row.seconds * FLOP_S / CSR_FLOP_S)
        for row in PROFILE.kernels
        if "csr" in row.kernel
    ]
    small = [
        replace(row, kernel="conv 3x3 dense", columns=9 * row.columns, seconds=row.seconds * 9 / 2)
        for row in PROFILE.kernels
        if row.kernel == "conv dense"
    ]
    slowed = tuple(Contention(kernel, 2, 1, ratio) for kernel, ratio in (("dense", 1.5), ("csr", 1.1), ("conv csr", 1.2)))
    return replace(PROFILE, kernels=(*PROFILE.kernels, *of_columns, *small), contention=slowed)


def executed(network: Network, strategy_: str, profile: Profile, batch: int, devices: int) -> dict[str, KernelCase]:
    """The cases for which a rank's kernels are chosen, by layer."""
    layers = (layer.layer for layer in network.topology.layers if layer.index is not None)
    cases: list[KernelCase] = []

    def choose(case: KernelCase) -> str:
        cases.append(case)
        return profile.kernel(case)

    parts = {space.name: np.arange(space.units) * devices // space.units for space in network.topology.hidden}
    shard(network, strategy_, Peers(0, devices), parts=parts, batch=batch, choose=choose)
    return dict(zip(layers, cases, strict=True))


@pytest.mark.parametrize(("name", "devices"), [("single", 1), ("data", 2)])
def test_the_kernels_and_times_that_the_model_counts_with_are_those_of_the_execution(name: str, devices: int) -> None:
    convolutions = nn.Sequential(nn.Conv2d(1, 20, 3), nn.ReLU(), nn.Conv2d(20, 30, 3), nn.ReLU(), nn.Flatten(), nn.Linear(480, 4))
    linear = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 4))
    random, profile, kernels = np.random.default_rng(0), with_columns(), set[str]()
    for module, example, thin in ((convolutions, (1, 8, 8), {"2": 30 * 20 * 9}), (linear, (50,), {"2": 60 * 40, "4": 4 * 60})):
        network = Network(copy.deepcopy(module), torch.zeros(1, *example))
        few = {layer: np.sort(random.choice(size, int(0.06 * size), replace=False)) for layer, size in thin.items()}
        first = same_columns(40, 50) if module is linear else np.arange(0, 20 * 9, 2)
        network.set_connections({**few, "0": first})
        work, found = Workload.of_network(network), executed(network, name, profile, 16, devices)
        shares = Shares(work, None, devices, 16)
        for layer, case in found.items():
            local = shares.of(work.layer(layer), strategy(work, name))[0]
            assert layer_seconds(local, profile, devices) == profile.fastest(case)
            kernels.add(profile.kernel(case))
    assert kernels == {"dense", "csr", "columns"}


def test_where_the_structure_of_a_part_is_not_known_its_time_is_bounded_from_above() -> None:
    network = Network(nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 4)), torch.zeros(1, 50))
    network.set_connections({"0": same_columns(40, 50)})
    work, profile = Workload.of_network(network), with_columns()
    case = executed(network, "model", profile, 16, 2)["0"]
    partition = Partition({"0": np.repeat([0, 1], 20)}, 2)
    counted, kernel = layer_seconds(Shares(work, partition, 2, 16).of(work.layers[0], strategy(work, "model"))[0], profile, 2)
    assert (kernel, profile.fastest(case)[1]) == ("csr", "columns")
    assert counted > profile.fastest(case)[0]


def test_data_parallelism_sums_every_gradient() -> None:
    step = predict(Workload.of(MLP), "data", None, PROFILE, 64, 2)
    size = 4 * (10 * 20 + 20 + 20 * 20 + 20 + 20 * 5 + 5)
    assert step.compute_s == pytest.approx(OVERHEAD_S + FLOP_S * 32 * (100 + 400 + 100))
    assert step.communication_s == pytest.approx(2 * (LATENCY_S + size / 2 / BANDWIDTH))
    assert (step.sum_bytes_per_step, step.halo_bytes_per_step) == (2 * size, 0)


def test_two_halves_that_do_not_talk_do_a_quarter_of_the_work_each_in_the_middle() -> None:
    work, partition = halves(separate=True)
    step = predict(work, "model", partition, PROFILE, 64)
    logits = 64 * 5 * 4
    assert step.compute_s == pytest.approx(OVERHEAD_S + FLOP_S * 64 * (10 * 10 / 2 + 10 * 10 + 10 * 5))
    assert step.communication_s == pytest.approx(2 * (LATENCY_S + logits / 2 / BANDWIDTH))
    assert step.halo_bytes_per_step == 0


def test_two_halves_that_tell_each_other_everything_exchange_forward_and_backward() -> None:
    work, partition = halves(separate=False)
    step = predict(work, "model", partition, PROFILE, 64)
    handed, logits = 10 * 64 * 4, 64 * 5 * 4
    assert step.compute_s == pytest.approx(OVERHEAD_S + FLOP_S * 64 * (10 * 10 / 2 + 10 * 20 + 10 * 5))
    assert step.communication_s == pytest.approx(2 * (LATENCY_S + handed / BANDWIDTH) + 2 * (LATENCY_S + logits / 2 / BANDWIDTH))
    assert step.halo_bytes_per_step == bytes_per_step(work, partition, 64, 4) == 2 * 2 * handed


@pytest.mark.parametrize("topology", [MLP, convolutional(), branched()])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_share_all_rows_and_all_connections(topology: object, parts: int) -> None:
    work = Workload.of(sparse(topology, 0.4))  # type: ignore[arg-type]
    partition = PARTITIONERS["contiguous"](work, parts)
    shares, layouts = Shares(work, partition, parts, 8), strategy(work, "model")
    for layer in work.layers:
        held = shares.of(layer, layouts)
        divided = layouts[layer.computes] == "units"
        if divided:
            assert sum(local.rows for local in held) == layer.rows
        if divided or all(layouts[reads.space] == "units" for reads in layer.reads):
            assert sum(local.connections for local in held) == layer.connections


@pytest.mark.parametrize("name", ["single", "data", "model"])
def test_more_samples_and_more_connections_take_longer(name: str) -> None:
    def total(density: float, batch: int) -> float:
        work = Workload.of(sparse(mlp(30, 60, 60, 10), density))
        return predict(work, name, PARTITIONERS["contiguous"](work, 2), PROFILE, batch, 2).total_s

    assert total(0.05, 64) < total(0.05, 128) < total(0.05, 256)
    assert total(0.01, 256) < total(0.03, 256) < total(0.08, 256)


def test_a_slower_link_makes_a_slower_step() -> None:
    work, partition = halves(separate=False)
    slow = replace(PROFILE, links=tuple(replace(link, latency_s=1e-2) for link in PROFILE.links))
    assert predict(work, "model", partition, slow, 64).total_s > predict(work, "model", partition, PROFILE, 64).total_s


def test_a_strategy_may_be_named_or_spelt_out() -> None:
    work, partition = halves(separate=True)
    assert predict(work, strategy(work, "model"), partition, PROFILE, 64) == predict(work, "model", partition, PROFILE, 64)


def storages(found: object, seen: dict[int, int]) -> dict[int, int]:
    """Bytes of all tensors that an object leads to, by the address of what they are stored in."""
    if isinstance(found, torch.Tensor):
        seen[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    elif isinstance(found, FunctionType):
        for cell in found.__closure__ or ():
            storages(cell.cell_contents, seen)
    elif isinstance(found, (list, tuple, dict)):
        for each in found.values() if isinstance(found, dict) else found:
            storages(each, seen)
    elif type(found).__module__.startswith("grow.kernels") and hasattr(found, "__dict__"):
        storages(vars(found), seen)
    return seen


@pytest.mark.parametrize(("name", "moments"), [("sgd", 1), ("adam", 2)])
@pytest.mark.parametrize("kernel", ["complete", "dense", "csr", COMPILED, "condensed", "columns", "block_16", "radix"])
@pytest.mark.parametrize("first", [False, True])
def test_the_memory_of_a_layer_is_that_of_all_tensors_that_a_step_leaves(kernel: str, name: optim.Name, moments: int, first: bool) -> None:
    """Of one that reads data, which needs no gradient, and of one that reads another's values."""
    network = Network(nn.Sequential(nn.Linear(128, 256)), torch.zeros(1, 128))
    if kernel != "complete":
        network.set_connections({"0": drawn(kernel, 256, 128, 1 / 8)})
        network.use_kernels(lambda case: kernel, 16)
    optimizer = optim.make(name, network.parameters(), 0.01)
    network.module(torch.randn(16, 128, requires_grad=not first)).sum().backward()
    optimizer.step()
    layer = network.layers["0"]
    parameters = [(parameter, parameter.grad, list(optimizer.state[parameter].values())) for parameter in network.parameters()]
    held = sum(storages([parameters, list(layer.buffers()), layer._product], {}).values())
    work = Workload.of_network(network)
    layer_work = replace(work.layers[0], input_gradient=not first)
    (local,) = Shares(work, None, 1, 0).of(layer_work, strategy(work, "single"))
    counted = layer_bytes(local, "dense" if kernel == "complete" else kernel, 4, moments)
    assert held <= counted * 1.02
    if kernel not in ("columns", "block_16"):  # which look up less
        assert held >= counted * 0.98


def test_what_operators_make_of_the_values_is_kept() -> None:
    """8 channels of 36 values are taken in by a pooling."""
    plain, pooled = (nn.Sequential(nn.Conv2d(1, 8, 3), *last) for last in ((), (nn.MaxPool2d(2),)))
    works = [Workload.of_network(Network(module, torch.zeros(1, 1, 8, 8))) for module in (plain, pooled)]
    less, more = (predict(work, "single", None, PROFILE, 64).memory_bytes for work in works)
    assert more - less == 4 * 64 * 8 * 36
    assert predict(works[0], "single", None, PROFILE, 64, moments=3).memory_bytes - less == 2 * 4 * (8 * 9 + 8)


def test_the_word_is_of_the_profile() -> None:
    work = Workload.of(MLP)
    here = replace(PROFILE, key=key_of(PROFILE.devices))
    assert [predict(work, "single", None, profile, 1).word for profile in (PROFILE, here)] == ["simulated", "predicted"]


def test_units_without_a_partition_are_refused() -> None:
    with pytest.raises(ValueError, match="partition is None, but must be given under 'units'"):
        predict(Workload.of(MLP), "model", None, PROFILE, 64)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch is 0, but must be at least 1"):
        predict(Workload.of(MLP), "single", None, PROFILE, 0)


def test_operators_take_their_share_of_rows_and_samples() -> None:
    """8 channels of 36 values are pooled at 1 ns a value, of which the way forward takes 0.9."""
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    work = Workload.of_network(Network(module, torch.zeros(1, 1, 8, 8)))
    pooling = replace(PROFILE, operators=tuple(OperatorTime("max_pool", n, 1e-9 * n, 0.9e-9 * n) for n in (1, 10**6)))
    partition = Partition({"0": np.arange(8) % 2}, 2)
    for strategy_, devices in (("single", 1), ("data", 2), ("model", 2)):
        plain, pooled = (predict(work, strategy_, partition, profile, 64, devices).compute_s for profile in (PROFILE, pooling))
        assert pooled - plain == pytest.approx(1e-9 * 8 * 36 * 64 / devices)
    forward = [predict(work, "single", None, profile, 64, inference=True).compute_s for profile in (PROFILE, pooling)]
    assert forward[1] - forward[0] == pytest.approx(0.9e-9 * 8 * 36 * 64)


def test_inference_is_the_way_forward_alone() -> None:
    work, partition = halves(separate=False)
    forward, step = (predict(work, "model", partition, PROFILE, 64, inference=inference) for inference in (True, False))
    assert forward.compute_s == pytest.approx(FLOP_S * 64 * (10 * 10 / 4 + 10 * 20 / 3 + 10 * 5 / 3))
    assert forward.halo_bytes_per_step * 2 == step.halo_bytes_per_step
    assert 0 < forward.sum_bytes_per_step == step.sum_bytes_per_step  # the logits, which are totalled on the way forward
    data = predict(work, "data", None, PROFILE, 64, 2, inference=True)
    assert (data.bytes_per_step, data.communication_s) == (0, 0.0)
