"""Design, section 5: what every edit keeps, for every kind of layer, every optimizer and every storage."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from grow import optim
from grow.axes import IntArray, axis_length
from grow.kernels import KERNELS, KernelCase
from grow.layers import expand
from grow.network import Network
from grow.optim import BIRTH
from grow.topology import Topology
from tests.contracts.crossed import STORAGES, crossed, named
from tests.contracts.modules import SAMPLES, Sample

OPTIMIZERS = ("sgd", "adam", "adamw")
STOCK = {"adam": ("adam", torch.optim.Adam), "adamw": ("adamw", torch.optim.AdamW), "sgd": ("sgd", torch.optim.SGD)}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
NAMED_SAMPLES = {name: (sample,) for name, sample in SAMPLES.items()}
every_sample_and_kernel = pytest.mark.parametrize(("kernel", "sample"), crossed(named(KERNELS), NAMED_SAMPLES, STORAGES))
every_sample_and_optimizer = pytest.mark.parametrize(("name", "sample"), crossed(named(OPTIMIZERS), NAMED_SAMPLES, ("adam",)))
# What an optimizer keeps depends on the storage alone, of which there are two.
KEPT = {
    **{kernel: (kernel, "adam") for kernel in KERNELS},
    **{f"{kernel}-{name}": (kernel, name) for kernel in STORAGES for name in ("sgd", "adamw")},
}
every_sample_optimizer_and_kernel = pytest.mark.parametrize(("kernel", "name", "sample"), crossed(KEPT, NAMED_SAMPLES, STORAGES))


def attached(network: Network, name: str) -> torch.optim.Optimizer:
    optimizer = optim.make(name, network.parameters(), learning_rate=0.01, momentum=0.9, weight_decay=0.1)  # type: ignore[arg-type]
    network.attach(optimizer)
    return optimizer


def train(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, steps: int = 3) -> None:
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def outputs(network: Network, x: Tensor) -> Tensor:
    network.eval()
    return network(x).clone()


def some(network: Network, share: float, existing: bool = True, seed: int = 0) -> dict[str, IntArray]:
    """A random share of the existing (absent) connections of every layer."""
    draws = np.random.default_rng(seed)
    found = {}
    for layer in network.topology.layers:
        candidates = layer.positions() if existing else np.setdiff1d(np.arange(layer.possible), layer.positions())
        found[layer.layer] = np.sort(draws.choice(candidates, int(share * len(candidates)), replace=False))
    return found


def dense_state(network: Network, optimizer: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
    """A tensor, its gradient and its optimizer state, those of a weight by flat position, whatever the storage."""
    parameter = network.module.get_parameter(name)
    found = {"value": parameter.detach(), **optimizer.state[parameter]} | ({} if parameter.grad is None else {"grad": parameter.grad})
    layer = network.layers.get(name.removesuffix(".weight"))
    if layer is not None and name.endswith(".weight") and layer.storage == "compressed":
        return {k: expand(v, layer.positions, layer.weight_shape).reshape(-1) if v.dim() else v for k, v in found.items()}
    return {key: value.reshape(-1).clone() if value.dim() else value.clone() for key, value in found.items()}


def everything(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every byte that an edit may touch."""
    found = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    for name, parameter in network.module.named_parameters():
        found |= {f"{name} {key}": value.clone() for key, value in optimizer.state[parameter].items()}
        if parameter.grad is not None:
            found[f"{name} grad"] = parameter.grad.clone()
    return found


def assert_sound(network: Network, optimizer: torch.optim.Optimizer) -> None:
    """Shapes fit the axes, the optimizer holds exactly the network's parameters, and what does not exist is zero."""
    units = network.topology.units
    tensors = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    for name, axes in network.axes.items():
        for size, axis in zip(tensors[name].shape, axes, strict=True):
            if not isinstance(axis, tuple):
                assert size == network.topology.layer(axis.layer).count
            elif axis:
                assert size == axis_length(axis, units)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in optimizer.state} <= held
    for layer in network.topology.layers:
        assert np.count_nonzero(network.layers[layer.layer].dense_weight()) <= layer.count
        for key, value in dense_state(network, optimizer, f"{layer.layer}.weight").items():
            if value.dim() and layer.index is not None:
                absent = np.setdiff1d(np.arange(layer.possible), layer.index)
                assert not value[absent].any(), f"{key} of absent connections of {layer.layer}"


# ---------------------------------------------------------------------- (a) the output stays


@every_sample_and_kernel
def test_growing_connections_leaves_the_output(sample: Sample, kernel: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    network.prune_connections(some(network, 0.4))
    before = outputs(network, x)
    network.grow_connections(some(network, 0.5, existing=False))
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)


@every_sample_and_kernel
def test_adding_units_leaves_the_output_and_they_can_learn(sample: Sample, kernel: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, "sgd")
    network.prune_connections(some(network, 0.3))
    before, units = outputs(network, x), network.topology.units
    for space in network.topology.hidden:
        network.add_units(space.name, 2, torch.Generator().manual_seed(0), fan_in=3, fan_out=2)
    assert all(network.topology.units[space.name] == units[space.name] + 2 for space in network.topology.hidden)
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
    train(network, optimizer, x)
    assert_sound(network, optimizer)
    assert not torch.allclose(outputs(network, x), before)


def test_a_new_unit_has_the_fan_in_and_fan_out_that_were_asked_for() -> None:
    network = SAMPLES["perceptron"].network()
    network.add_units("0", 1, torch.Generator().manual_seed(0), fan_in=3, fan_out=2)
    new_row, new_column = network.layers["0"].dense_weight()[6], network.topology.layer("2").positions() % 7 == 6
    assert torch.count_nonzero(new_row) == 3
    assert new_row.abs().max() <= 3**-0.5
    assert new_column.sum() == 2


@every_sample_and_kernel
def test_splitting_units_leaves_the_output(sample: Sample, kernel: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, "adam")
    network.prune_connections(some(network, 0.3))
    train(network, optimizer, x, 1)
    before = outputs(network, x)
    for space in network.topology.hidden:
        network.split_units(space.name, [1, 0])
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
    train(network, optimizer, x)
    assert_sound(network, optimizer)


@every_sample_and_kernel
def test_removing_unconnected_units_leaves_the_output(sample: Sample, kernel: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, "adam")
    train(network, optimizer, x, 1)
    removed: dict[str, int] = {}
    for seed in range(4):
        network.prune_connections(some(network, 0.5, seed=seed))
        before = outputs(network, x)
        for space, count in network.remove_unconnected_units().items():
            removed[space] = removed.get(space, 0) + count
        torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
    assert removed
    assert all(space.units >= 1 for space in network.topology.hidden)
    train(network, optimizer, x)
    assert_sound(network, optimizer)


def test_the_constant_of_a_unit_without_fan_in_goes_into_the_next_bias() -> None:
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    for name, values in {"0.weight": [[1.0], [1.0]], "0.bias": [0.0, 3.0], "2.weight": [[1.0, 2.0]], "2.bias": [0.5]}.items():
        module.get_parameter(name).data = torch.tensor(values)
    network = Network(module, torch.zeros(1, 1))
    network.prune_connections({"0": np.array([1])})
    assert network.remove_unconnected_units() == {"0": 1}
    assert network.layers["2"].bias.tolist() == [0.5 + 2 * 3]


def test_a_unit_whose_constant_no_bias_can_take_stays() -> None:
    network, x = SAMPLES["perceptron"].network(), SAMPLES["perceptron"].inputs()
    with torch.no_grad():
        network.layers["0"].bias.fill_(1.0)
    network.prune_connections({"0": np.arange(5)})  # unit 0 is relu(1) now, and layer 2 has no bias
    before = outputs(network, x)
    assert network.remove_unconnected_units() == {}
    assert torch.equal(outputs(network, x), before)


# ---------------------------------------------------------------------- (b) state of what survives


@every_sample_optimizer_and_kernel
def test_what_survives_keeps_its_weight_gradient_and_state_bit_for_bit(sample: Sample, kernel: str, name: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, name)
    network.prune_connections(some(network, 0.3))
    train(network, optimizer, x)
    weights = [f"{layer.layer}.weight" for layer in network.topology.layers]
    before = {weight: dense_state(network, optimizer, weight) for weight in weights}
    pruned, grown = some(network, 0.2), some(network, 0.3, existing=False)
    network.grow_connections(grown)
    network.prune_connections(pruned)
    for weight in weights:
        layer = weight.removesuffix(".weight")
        kept = np.setdiff1d(network.topology.layer(layer).positions(), grown[layer])
        after = dense_state(network, optimizer, weight)
        assert set(before[weight]) <= set(after)
        for key, value in before[weight].items():
            assert torch.equal(value[kept], after[key][kept]) if value.dim() else torch.equal(value, after[key])
        for key in after:
            if after[key].dim():
                expected = float(optimizer.state[network.module.get_parameter(weight)]["step"]) if key == BIRTH else 0.0
                assert (after[key][grown[layer]] == expected).all()
                assert not after[key][pruned[layer]].any()


@every_sample_optimizer_and_kernel
def test_removing_units_keeps_the_state_of_all_others(sample: Sample, kernel: str, name: str) -> None:
    """The network without a unit trains on exactly as one in which nothing leads out of or into that unit."""
    masked, smaller = (sample.network(kernel=kernel) for _ in range(2))
    optimizers = [attached(masked, name), attached(smaller, name)]
    x = sample.inputs()
    space = masked.topology.hidden[-1].name
    for network, optimizer in zip((masked, smaller), optimizers, strict=True):
        train(network, optimizer, x)
    for layer in masked.topology.consumers(space):
        segments, units, _ = masked.topology.connected_units(layer, layer.positions())
        inside = np.array([segment.space == space for segment in layer.source])[segments]
        masked.prune_connections({layer.layer: layer.positions()[inside & (units == 1)]})
    smaller.remove_units(space, [1])
    for network, optimizer in zip((masked, smaller), optimizers, strict=True):
        train(network, optimizer, x)
        assert_sound(network, optimizer)
    torch.testing.assert_close(outputs(smaller, x), outputs(masked, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "name", "stock"), crossed(named(KERNELS), STOCK, STORAGES))
def test_a_new_connection_moves_as_in_a_fresh_torch_optimizer(kernel: str, name: str, stock: type[torch.optim.Optimizer]) -> None:
    sample = SAMPLES["perceptron"]
    network, x = sample.network(kernel=kernel), sample.inputs()
    network.prune_connections({"0": np.array([3, 11, 20])})
    optimizer = attached(network, name)
    train(network, optimizer, x, 20)
    network.grow_connections({"0": np.array([11, 20])})
    twin = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    settings = {"momentum": 0.9} if name == "sgd" else {}
    fresh = stock([twin], lr=0.01, weight_decay=0.1, **settings)
    for _ in range(10):
        train(network, optimizer, x, 1)
        twin.grad = dense_state(network, optimizer, "0.weight")["grad"][[11, 20]]
        fresh.step()
    torch.testing.assert_close(dense_state(network, optimizer, "0.weight")["value"][[11, 20]], twin.detach(), rtol=1e-10, atol=0)


@every_optimizer
def test_new_units_start_with_fresh_state_in_every_tensor(name: str) -> None:
    sample = SAMPLES["convolutional"]
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, name)
    train(network, optimizer, x)
    network.add_units("conv1", 1, torch.Generator().manual_seed(0), fan_in=4, fan_out=4)
    for tensor, fresh in {"norm1.weight": 1.0, "norm1.bias": 0.0, "conv1.bias": 0.0}.items():
        found = dense_state(network, optimizer, tensor)
        assert found["value"][-1] == fresh
        assert all(value[-1] == (3 if key == BIRTH else 0) for key, value in found.items() if value.dim() and key != "value")
    assert network.module.get_buffer("norm1.running_mean")[-1] == 0
    assert network.module.get_buffer("norm1.running_var")[-1] == 1


# ---------------------------------------------------------------------- (c), (d), (e)


@every_sample_optimizer_and_kernel
def test_what_was_pruned_never_comes_back(sample: Sample, kernel: str, name: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, name)
    train(network, optimizer, x)
    pruned = some(network, 0.4)
    network.prune_connections(pruned)
    train(network, optimizer, x, 5)
    for layer, positions in pruned.items():
        assert not network.layers[layer].dense_weight().reshape(-1)[positions].any()
    network.grow_connections(pruned)
    for layer, positions in pruned.items():
        assert not network.layers[layer].dense_weight().reshape(-1)[positions].any()


def test_no_hidden_space_loses_its_last_connected_unit() -> None:
    network = SAMPLES["perceptron"].network()
    with pytest.raises(ValueError, match=r"space '0' would keep 0 connected units.*; prune fewer connections"):
        network.prune_connections({"2": np.arange(24)})
    with pytest.raises(ValueError, match="4 units of space '2' are to be removed, but it has 4 and must keep at least 1"):
        network.remove_units("2", range(4))


@every_sample_and_kernel
def test_pruned_connections_have_exactly_no_influence(sample: Sample, kernel: str) -> None:
    """The network computes what the plain module computes whose weights are zero there."""
    network, x = sample.network(kernel=kernel), sample.inputs()
    network.prune_connections(some(network, 0.5))
    plain = sample.build().double().eval()
    state = {name: tensor for name, tensor in network.module.state_dict().items() if not name.endswith("positions")}
    plain.load_state_dict(state | {f"{name}.weight": layer.dense_weight() for name, layer in network.layers.items()})
    torch.testing.assert_close(outputs(network, x), plain(x).detach(), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- failed edits, storages, old graphs


FAILING = {
    "growing what exists": (
        lambda n: n.grow_connections({"0": np.array([0]), "4": np.array([0])}),
        "position 0 of layer '4' exists already",
    ),
    "pruning what is absent": (
        lambda n: n.prune_connections({"4": np.array([0]), "0": np.array([0])}),
        "position 0 of layer '0' does not exist",
    ),
    "a position outside": (
        lambda n: n.prune_connections({"4": np.array([12])}),
        r"position 12 of layer '4' does not exist, but must be in 0..11",
    ),
    "a negative position": (lambda n: n.grow_connections({"0": np.array([-1])}), "position -1 of layer '0' does not exist"),
    "a position twice": (lambda n: n.prune_connections({"4": np.array([1, 1])}), "positions of layer '4' has 1 duplicates"),
    "an unknown layer": (
        lambda n: n.prune_connections({"4": np.array([1]), "5": np.array([1])}),
        "layer is '5', but must be one of 0, 2, 4",
    ),
    "too few values": (lambda n: n.grow_connections({"0": np.array([0])}, {"0": torch.ones(2)}), "values of layer '0' has shape"),
    "an unknown unit": (lambda n: n.remove_units("0", [6]), "unit 6 of space '0' does not exist, but must be in 0..5"),
    "a negative unit": (lambda n: n.remove_units("0", [-1]), "unit -1 of space '0' does not exist"),
    "the input": (lambda n: n.remove_units("input", [0]), "space 'input' is the input, but must be hidden"),
    "an unknown space": (lambda n: n.add_units("fc", 1, torch.Generator(), 1, 1), "space is 'fc', but must be one of input, 0, 2, output"),
    "no units": (lambda n: n.add_units("0", 0, torch.Generator(), 1, 1), "count is 0, but must be at least 1"),
    "units without fan-in": (lambda n: n.add_units("0", 1, torch.Generator(), 0, 1), "fan_in is 0, but must be at least 1"),
    "units without fan-out": (lambda n: n.add_units("0", 1, torch.Generator(), 1, 0), "fan_out is 0, but must be at least 1"),
    "splitting a unit twice": (lambda n: n.split_units("0", [1, 1]), "but must be distinct units of space '0'"),
    "an unknown kernel": (lambda n: n.use_kernels(lambda case: "magic", 8), "kernel is 'magic', but must be one of dense, csr"),
    "parts of the wrong length": (
        lambda n: n.assign({"0": np.zeros(5), "2": np.zeros(4)}),
        "parts of space '0' has 5 entries.*per unit, 6",
    ),
}


@pytest.mark.parametrize(("kernel", "edit", "message"), crossed(named(KERNELS), FAILING, STORAGES))
def test_a_failed_edit_leaves_every_byte(kernel: str, edit, message: str) -> None:
    sample = SAMPLES["perceptron"]
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, "adam")
    network.assign({"0": np.arange(6) % 2, "2": np.arange(4) % 2})
    network.prune_connections({"0": np.array([0])})
    train(network, optimizer, x)
    before, parameters, parts = everything(network, optimizer), list(map(id, network.parameters())), network.parts
    with pytest.raises(ValueError, match=message):
        edit(network)
    after = everything(network, optimizer)
    assert list(map(id, network.parameters())) == parameters
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert network.parts is parts
    train(network, optimizer, x)


@every_sample_and_optimizer
def test_changing_the_storage_there_and_back_loses_no_bit(sample: Sample, name: str) -> None:
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, name)
    network.prune_connections(some(network, 0.4))
    train(network, optimizer, x)
    network.grow_connections(some(network, 0.3, existing=False))
    train(network, optimizer, x)
    before = everything(network, optimizer)
    network.use_kernels(lambda case: "csr", 8)
    assert all(layer.storage == "compressed" for layer in network.layers.values())
    network.use_kernels(lambda case: "dense", 8)
    after = everything(network, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_sample_and_optimizer
def test_both_storages_train_alike(sample: Sample, name: str) -> None:
    found = []
    for kernel in STORAGES:
        network, x = sample.network(kernel=kernel), sample.inputs()
        optimizer = attached(network, name)
        network.prune_connections(some(network, 0.4))
        train(network, optimizer, x)
        network.grow_connections(some(network, 0.2, existing=False))
        network.add_units(network.topology.hidden[0].name, 1, torch.Generator().manual_seed(0), 2, 2)
        train(network, optimizer, x)
        found.append(outputs(network, x))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)


def test_kernels_are_chosen_by_the_case_of_each_layer() -> None:
    network, seen = SAMPLES["convolutional"].network(), []
    network.prune_connections({"fc1": np.arange(60)})
    network.use_kernels(lambda case: seen.append(case) or ("csr" if case.density < 1 else "dense"), batch=10)
    assert [(case.rows, case.columns, case.density, case.batch) for case in seen] == [
        (4, 18, 1.0, 360),
        (5, 36, 1.0, 160),
        (6, 20, 0.5, 10),
        (3, 6, 1.0, 10),
    ]
    assert [layer.kernel for layer in network.layers.values()] == ["dense", "dense", "csr", "dense"]


def test_a_kernel_is_chosen_again_only_where_a_layer_has_changed_by_more_than_a_share() -> None:
    network, seen = SAMPLES["perceptron"].network(), []
    name, other = list(network.layers)[:2]
    possible = network.topology.layer(name).possible

    def asked(count: int) -> list[int]:
        """Connections of the layers that are asked for, once the first one has so many."""
        network.set_connections({name: np.arange(possible)[:count]})
        seen.clear()
        network.use_kernels(lambda case: seen.append(round(case.density * case.rows * case.columns)) or "csr", batch=10, within=0.2)
        return list(seen)

    def csr(case: KernelCase) -> str:
        return "csr"

    network.set_connections({name: np.arange(possible)[: possible // 2]})
    network.use_kernels(csr, batch=10, within=0.2)
    most = int(1.2 * (possible // 2))
    assert asked(most) == []  # a fifth more
    assert asked(possible // 2 - 1) == []
    assert asked(most + 1) == [most + 1]
    assert asked(most) == []  # it counts from where the kernel was chosen, not from where the connections were
    assert asked(possible) == [possible]
    network.use_kernels(csr, batch=10)  # whatever has changed
    network.remove_units(network.topology.hidden[0].name, [0, 1])
    seen.clear()
    network.use_kernels(lambda case: seen.append(case.columns) or "csr", batch=10, within=0.2)
    assert network.topology.layer(other).shape[1] in seen  # as dense as it was, but smaller


def test_a_dtype_that_a_kernel_does_not_declare_is_computed_dense() -> None:
    network = SAMPLES["perceptron"].network(kernel="csr", dtype=torch.bfloat16)
    assert {layer.kernel for layer in network.layers.values()} == {"dense"}


@every_kernel
def test_an_old_loss_kept_alive_across_an_edit_does_not_break_the_next_backward(kernel: str) -> None:
    sample = SAMPLES["convolutional"]
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, "adam")
    old = network(x).square().mean()
    network.prune_connections(some(network, 0.4))
    network.remove_units("fc1", [2])
    network(x).square().mean().backward()
    before = {name: layer.weight.grad.clone() for name, layer in network.layers.items()}
    old.backward()  # goes to the weights of before the edit
    assert all(torch.equal(layer.weight.grad, before[name]) for name, layer in network.layers.items())
    train(network, optimizer, x, 1)
    assert_sound(network, optimizer)


def test_given_values_go_to_their_positions_in_any_order() -> None:
    for kernel in KERNELS:
        network = SAMPLES["perceptron"].network(kernel=kernel)
        network.prune_connections({"0": np.array([3, 7, 9])})
        network.grow_connections({"0": np.array([9, 3])}, {"0": torch.tensor([9.0, 3.0])})
        assert network.layers["0"].dense_weight().reshape(-1)[[3, 7, 9]].tolist() == [3, 0, 9]


def test_parts_follow_every_edit_and_new_units_go_where_there_are_fewest() -> None:
    network = SAMPLES["perceptron"].network()
    network.assign({"0": np.array([0, 0, 1, 1, 1, 0]), "2": np.array([0, 1, 0, 1])})
    network.remove_units("0", [0, 5])
    network.add_units("0", 3, torch.Generator().manual_seed(0), 1, 1)
    network.split_units("2", [1])
    assert network.parts is not None
    assert network.parts["0"].tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert network.parts["2"].tolist() == [0, 1, 0, 1, 0]


def test_who_knows_better_says_where_new_units_go() -> None:
    asked: list[dict[str, list[int]]] = []

    def last(topology: Topology, parts: Mapping[str, IntArray]) -> Mapping[str, IntArray]:
        assert all(len(labels) == topology.units[space] for space, labels in parts.items())
        asked.append({space: labels.tolist() for space, labels in parts.items()})
        return {space: np.where(labels < 0, 1, labels) for space, labels in parts.items()}

    network = SAMPLES["perceptron"].network()
    network.assign({"0": np.array([0, 0, 1, 1, 1, 0]), "2": np.array([0, 1, 0, 1])}, last)
    network.remove_units("0", [0, 5])
    assert not asked  # nothing is new
    assert network.parts is not None
    network.assign(network.parts)  # which changes nothing of who is asked
    network.add_units("0", 2, torch.Generator().manual_seed(0), 1, 1)
    assert asked == [{"0": [0, 1, 1, 1, -1, -1], "2": [0, 1, 0, 1]}]
    assert network.parts["0"].tolist() == [0, 1, 1, 1, 1, 1]
    network.assign(None)
    network.assign({"0": np.zeros(6, np.int64), "2": np.array([0, 1, 0, 1])})
    network.add_units("0", 1, torch.Generator().manual_seed(0), 1, 1)
    assert len(asked) == 1


def test_setting_connections_keeps_the_weights_of_those_that_stay() -> None:
    for kernel in KERNELS:
        network = SAMPLES["perceptron"].network(kernel=kernel)
        before = network.layers["0"].dense_weight().reshape(-1).clone()
        network.set_connections({"0": np.array([1, 4, 5])})
        network.set_connections({"0": None})
        found = network.layers["0"].dense_weight().reshape(-1)
        assert torch.equal(found[[1, 4, 5]], before[[1, 4, 5]])
        assert torch.count_nonzero(found) == 3


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    network = SAMPLES["perceptron"].network()
    with pytest.raises(ValueError, match="optimizer holds none of the network's parameters"):
        network.attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))


# ---------------------------------------------------------------------- any sequence of edits


EDITS = ("grow", "prune", "add", "remove", "split", "unconnected", "kernels")


def carry_out(network: Network, edit: str, seed: int) -> None:
    """One edit, drawn by its seed; one that would break a rule is refused."""
    hidden = network.topology.hidden
    space = hidden[seed % len(hidden)]
    generator = torch.Generator().manual_seed(seed)
    try:
        match edit:
            case "grow":
                network.grow_connections(some(network, 0.5, existing=False, seed=seed))
            case "prune":
                network.prune_connections(some(network, 0.3, seed=seed))
            case "add":
                network.add_units(space.name, 1 + seed % 2, generator, fan_in=1 + seed % 3, fan_out=1 + seed % 2)
            case "remove":
                network.remove_units(space.name, [seed % space.units])
            case "split":
                network.split_units(space.name, [seed % space.units])
            case "unconnected":
                network.remove_unconnected_units()
            case "kernels":
                network.use_kernels(lambda case: ("dense", "csr")[(case.rows + seed) % 2], 8)
    except ValueError as error:
        assert "must keep at least 1" in str(error)  # noqa: PT017 - the only rule that a drawn edit can break


@settings(max_examples=40, deadline=None)
@given(
    sample=st.sampled_from(list(SAMPLES.values())),
    name=st.sampled_from(OPTIMIZERS),
    edits=st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 50)), min_size=1, max_size=8),
)
def test_after_any_sequence_of_edits_the_network_is_sound_and_trains(sample: Sample, name: str, edits: list[tuple[str, int]]) -> None:
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, name)
    for edit, seed in edits:
        before = outputs(network, x)
        carry_out(network, edit, seed)
        if edit not in ("prune", "remove"):
            torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)
        assert_sound(network, optimizer)
        train(network, optimizer, x, 1)
        assert_sound(network, optimizer)
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def test_a_complete_layer_forgets_the_positions_that_a_compressed_kernel_had() -> None:
    network = Network(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))
    for kernel in ("csr", "dense"):
        network.use_kernels(lambda case, kernel=kernel: kernel, 8)  # type: ignore[misc]
    assert network.layers["0"].positions is None
    assert network.topology.layers[0].index is None
