"""Redundant units: what is found, what is kept of the function, and that the bound holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from grow import apoptosis
from grow.axes import IntArray
from grow.kernels import KERNELS
from grow.network import Network
from grow.nonlinearity import passage
from grow.topology import rows_of
from grow.watch import layer_inputs
from tests.contracts.modules import SAMPLES, Sample
from tests.grow.test_network import assert_sound, attached, outputs, train


def network(*layers: nn.Module, inputs: int = 4, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in layers:
            if isinstance(layer, (nn.Linear, nn.BatchNorm1d)):
                layer.reset_parameters()
        return Network(nn.Sequential(*layers), torch.zeros(1, inputs)).double()


def samples(count: int = 40, inputs: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copy_unit(net: Network, unit: int, other: int, factor: float) -> None:
    with torch.no_grad():
        net.layers["0"].weight[unit] = factor * net.layers["0"].weight[other]
        net.layers["0"].bias[unit] = factor * net.layers["0"].bias[other]


def pre_activations(net: Network, layer: str, x: Tensor) -> Tensor:
    module = net.layers[layer]
    read = layer_inputs(net, {layer: module}, x)[layer]
    with torch.no_grad():
        return module(read)


class Stream(nn.Module):
    """Two residual blocks, linear, in one stream: what the first one changes the second one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + 2 * torch.relu(self.first(x))
        return self.head(x + 2 * torch.relu(self.second(x)))


STREAM = Sample(Stream, (5,))


def rows_left(net: Network, layer: str, space: str, gone: IntArray) -> Tensor:
    """Rows of a layer that stay when units of a space go."""
    lost = rows_of(net.topology, net.topology.layer(layer), space, gone)
    return torch.from_numpy(np.setdiff1d(np.arange(net.topology.layer(layer).shape[0]), np.concatenate([np.zeros(0, np.int64), *lost])))


# ---------------------------------------------------------------------- twins


def test_the_worked_example_merges_to_nothing() -> None:
    """ReLU, w_j = 2.5 w_i, outgoing a_i = 1, a_j = -0.4: exact on all inputs (references: Srinivas and Babu 2015)."""
    net, x = network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), samples()
    copy_unit(net, 2, 0, 2.5)
    with torch.no_grad():
        net.layers["2"].weight[:, 0], net.layers["2"].weight[:, 2] = 1.0, -0.4
    before = outputs(net, x)
    found = apoptosis.find(net, "0", [x], 1e-12, "twins")
    assert {(merge.unit, *merge.into) for merge in found.merges} in ({(2, 0)}, {(0, 2)})
    net.merge_units("0", found.merges)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-12, atol=1e-12)
    assert (net.layers["2"].dense_weight().abs().amax(0) < 1e-15).sum() == 1  # the other one is nothing now
    assert found.bound < 1e-12


@pytest.mark.parametrize(
    ("activation", "factor", "merges"),
    [
        (nn.ReLU(), 3.0, True),
        (nn.LeakyReLU(0.1), 0.5, True),
        (nn.Identity(), 2.0, True),
        (nn.ReLU(), -1.0, False),
        (nn.Tanh(), 1.0, True),
        (nn.Tanh(), -1.0, True),
        (nn.Tanh(), 2.0, False),
        (nn.Sigmoid(), 1.0, True),
        (nn.Sigmoid(), -1.0, False),
        (nn.GELU(), 1.0, True),
        (nn.GELU(), 2.0, False),
    ],
)
def test_a_twin_is_one_only_up_to_the_symmetry_of_the_function(activation: nn.Module, factor: float, merges: bool) -> None:
    net, x = network(nn.Linear(4, 5), activation, nn.Linear(5, 3)), samples()
    copy_unit(net, 4, 1, factor)
    found = apoptosis.find(net, "0", [x], 1e-9, "twins")
    assert len(found.merges) == merges
    before = outputs(net, x)
    net.merge_units("0", found.merges)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-12, atol=1e-12)


def test_a_batch_norm_between_is_taken_into_account() -> None:
    """Other weights, but the norm makes twins of them: scale 2 of half the weights, a shift that makes up for the bias."""
    net, x = network(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)), samples()
    norm = net.module.get_submodule("1")
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        norm.running_var.copy_(torch.tensor([1.0, 0.5, 2.0]))
        norm.weight.copy_(torch.tensor([1.0, 0.7, 1.5]))
        net.layers["0"].weight[2] = net.layers["0"].weight[0] / 2
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = (net.layers["0"].bias - norm.running_mean) * scale + norm.bias
        norm.bias[2] += shift[0] * scale[2] / scale[0] / 2 - shift[2]
    before, found = outputs(net, x), apoptosis.find(net, "0", [x], 1e-9, "twins")
    assert len(found.merges) == 1
    net.merge_units("0", found.merges)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tolerance=st.floats(0.0, 0.9),
    noise=st.sampled_from([0.0, 1e-6, 0.01, 0.3]),
    activation=st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Identity()]),
)
def test_the_true_change_never_exceeds_the_bound_on_any_input(seed: int, tolerance: float, noise: float, activation: nn.Module) -> None:
    net, x = network(nn.Linear(4, 6), activation, nn.Linear(6, 3), seed=seed), samples(seed=seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for unit, other, factor in ((3, 0, 2.0), (4, 0, -1.0), (5, 1, 1.0)):
            copy_unit(net, unit, other, factor)
        net.layers["0"].weight += noise * torch.randn(6, 4, generator=draws, dtype=torch.float64)
    others = 10 * samples(60, seed=seed + 1)
    before, elsewhere = pre_activations(net, "2", x), pre_activations(net, "2", others)
    drive = (before - net.layers["2"].bias.detach()).norm()
    found = apoptosis.find(net, "0", [x[:15], x[15:]], tolerance, "twins")
    net.merge_units("0", found.merges)
    change = (pre_activations(net, "2", x) - before).norm() / drive
    assert change <= found.bound + 1e-9
    assert found.bound <= tolerance + 1e-12
    per_sample = (pre_activations(net, "2", others) - elsewhere).norm(dim=1)
    reach = torch.cat([others, torch.ones(60, 1, dtype=torch.float64)], 1).norm(dim=1)
    assert bool((per_sample <= found.per_input["2"] * reach + 1e-9).all())


# ---------------------------------------------------------------------- dependent


def test_a_unit_that_is_never_active_on_the_data_goes_for_nothing() -> None:
    net, x = network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), samples().clamp(-3, 3)
    with torch.no_grad():
        net.layers["0"].bias[1] = -100
    before, found = outputs(net, x), apoptosis.find(net, "0", [x], 1e-6)
    assert [merge.unit for merge in found.merges] == [1]
    net.merge_units("0", found.merges)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-12, atol=1e-12)


def test_a_unit_that_is_linear_in_others_and_one_that_is_constant_merge_into_several_and_the_bias() -> None:
    """Three always active ReLU units: the third is 2 z_0 - z_1 + 7. A fourth is always 5."""
    net, x = network(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), samples().clamp(-3, 3)
    with torch.no_grad():
        weight, bias = net.layers["0"].weight, net.layers["0"].bias
        bias[:2] = 20.0
        weight[2], bias[2] = 2 * weight[0] - weight[1], 2 * bias[0] - bias[1] + 7
        weight[3], bias[3] = 0.0, 5.0
    before, found = outputs(net, x), apoptosis.find(net, "0", [x], 1e-5)
    assert len(found.merges) == 2
    assert 3 in {merge.unit for merge in found.merges}
    net.merge_units("0", found.merges)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["perceptron", "convolutional", "coupled", "convolutional coupled"]),
    seed=st.integers(0, 1000),
    tolerance=st.floats(0.01, 0.9),
    stand_ins=st.sampled_from([None, 0, 1, 2]),
)
def test_the_change_on_the_data_stays_within_the_bound_for_every_kind_of_layer(
    name: str, seed: int, tolerance: float, stand_ins: int | None
) -> None:
    sample = SAMPLES[name]
    net, x = sample.network(seed), sample.inputs(seed, samples=24)
    for space in net.topology.hidden:
        readers = [layer.layer for layer in net.topology.consumers(space.name)]
        before = {reader: pre_activations(net, reader, x) for reader in readers}
        biases = {reader: 0.0 if net.layers[reader].bias is None else net.layers[reader].bias.detach() for reader in readers}
        found = apoptosis.find(net, space.name, [x[:8], x[8:]], tolerance, stand_ins=stand_ins)
        assert found.bound <= tolerance
        gone = np.array([merge.unit for merge in found.merges], np.int64)
        left = {reader: rows_left(net, reader, space.name, gone) for reader in readers}
        net.merge_units(space.name, found.merges)
        for reader, was in before.items():
            bias = biases[reader]
            drive = (was - (bias[:, None, None] if was.dim() > 2 and isinstance(bias, Tensor) else bias)).norm()
            assert (pre_activations(net, reader, x) - was[:, left[reader]]).norm() <= (found.bound + 1e-6) * drive


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tolerance=st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_the_bound_holds_for_large_values_with_a_large_mean_in_float32(seed: int, tolerance: float) -> None:
    """Fewer samples than units, and activations whose means are far above their spread: their second moments are all but singular."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Network(nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 5)), torch.zeros(1, 6))
    x = 100 * samples(30, 6, seed).float() + 50
    before, bias = pre_activations(net, "2", x), net.layers["2"].bias.detach()
    found = apoptosis.find(net, "0", [x[:20], x[20:]], tolerance)
    net.merge_units("0", found.merges)
    assert found.bound <= tolerance
    assert (pre_activations(net, "2", x) - before).norm() <= (found.bound + 1e-4) * (before - bias).norm()


def test_readers_that_read_one_another_stay_within_the_bound_together() -> None:
    """In a stream of residual blocks what a merge changes in one block is read by all that follow."""
    exceeded = 0
    for seed in range(20):
        net, x = STREAM.network(seed), STREAM.inputs(seed, samples=60)
        readers = [layer.layer for layer in net.topology.consumers("stem")]
        before = {reader: pre_activations(net, reader, x) for reader in readers}
        drives = {reader: (was - net.layers[reader].bias.detach()).norm() for reader, was in before.items()}
        found = apoptosis.find(net, "stem", [x], 0.2)
        gone = np.array([merge.unit for merge in found.merges], np.int64)
        left = {reader: rows_left(net, reader, "stem", gone) for reader in readers}
        net.merge_units("stem", found.merges)
        worst = max(float((pre_activations(net, r, x) - was[:, left[r]]).norm() / drives[r]) for r, was in before.items())
        assert worst == pytest.approx(found.bound, rel=1e-6, abs=1e-9)
        exceeded += worst > 0.2
    assert exceeded == 0


def test_values_that_are_not_finite_are_refused() -> None:
    net, x = network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), samples()
    x[:2, 0] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(ValueError, match="values of space '0' are not all finite, but must be"):
        apoptosis.find(net, "0", [x], 0.1)


def test_least_squares_keep_the_function_better_than_removal() -> None:
    net, x = SAMPLES["perceptron"].network(), SAMPLES["perceptron"].inputs(samples=60)
    before, errors = outputs(net, x), {}
    for stand_ins in (None, 1, 0):
        other = SAMPLES["perceptron"].network()
        found = apoptosis.find(other, "0", [x], 0.99, most=3, stand_ins=stand_ins)
        assert len(found.merges) == 3
        other.merge_units("0", found.merges)
        errors[stand_ins] = float((outputs(other, x) - before).norm())
    assert errors[None] < errors[1] < errors[0]


def test_a_larger_tolerance_never_finds_less_and_one_unit_always_stays() -> None:
    net, x = SAMPLES["perceptron"].network(), SAMPLES["perceptron"].inputs(samples=60)
    for method in ("dependent", "twins"):
        counts = [len(apoptosis.find(net, "0", [x], tolerance, method).merges) for tolerance in (0.0, 0.1, 0.5, 0.999)]
        assert counts == sorted(counts)
        assert counts[-1] <= 5


@pytest.mark.parametrize("optimizer_name", ["sgd", "adam", "adamw"])
def test_training_goes_on_after_merging(optimizer_name: str) -> None:
    for kernel in ("dense", "csr"):
        net, x = SAMPLES["perceptron"].network(kernel=kernel), SAMPLES["perceptron"].inputs(samples=60)
        net.prune_connections({"0": np.arange(0, 30, 3)})
        optimizer = attached(net, optimizer_name)
        train(net, optimizer, x)
        for space in net.topology.hidden:
            net.merge_units(space.name, apoptosis.find(net, space.name, [x], 0.6, stand_ins=1).merges)
        assert net.topology.units["0"] < 6
        train(net, optimizer, x)
        assert_sound(net, optimizer)


# ---------------------------------------------------------------------- the input


def dependent_inputs() -> Tensor:
    """Of four entries the third is twice the first minus the second plus one, and the fourth constant."""
    x = samples()
    return torch.stack([x[:, 0], x[:, 1], 2 * x[:, 0] - x[:, 1] + 1, torch.full_like(x[:, 0], 3.0)], 1)


def unread(net: Network, layer: str) -> list[int]:
    weight = net.layers[layer].dense_weight()
    return torch.nonzero((weight == 0).all(0))[:, 0].tolist()


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_that_others_predict_are_no_longer_read_and_the_function_stays(kernel: str) -> None:
    net, x = network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), dependent_inputs()
    net.use_kernels(lambda case: kernel, 40)
    optimizer = attached(net, "sgd")
    train(net, optimizer, x)
    before = outputs(net, x)
    found = apoptosis.find(net, "input", [x], 1e-6, ridge=1e-13)
    assert len(found.merges) == 2
    apoptosis.merge(net, found)
    torch.testing.assert_close(outputs(net, x), before, rtol=1e-7, atol=1e-7)
    assert net.topology.units["input"] == 4
    assert (net.layers["0"].connections, unread(net, "0")) == (6, sorted(merge.unit for merge in found.merges))
    train(net, optimizer, x)
    assert unread(net, "0") == sorted(merge.unit for merge in found.merges)
    assert_sound(net, optimizer)


def test_an_input_that_is_not_read_any_more_neither_goes_again_nor_stands_in() -> None:
    net, x = network(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), samples()
    first = apoptosis.find(net, "input", [x], 0.99, most=2)
    apoptosis.merge(net, first)
    gone = {merge.unit for merge in first.merges}
    second = apoptosis.find(net, "input", [x], 0.99)
    assert len(second.merges) == 1
    assert gone.isdisjoint({second.merges[0].unit, *second.merges[0].into})
    apoptosis.merge(net, second)
    assert len(unread(net, "0")) == 3


@pytest.mark.parametrize("name", ["convolutional", "coupled"])
def test_the_change_stays_within_the_bound_for_the_input_too(name: str) -> None:
    net, x = SAMPLES[name].network(), SAMPLES[name].inputs(samples=24)
    x[:, 1] = 0.5 * x[:, 0] + 0.1 * x[:, 1]
    readers = [layer.layer for layer in net.topology.consumers("input")]
    before = {reader: pre_activations(net, reader, x) for reader in readers}
    shifts = {reader: net.layers[reader](torch.zeros_like(x)).detach() for reader in readers}
    found = apoptosis.find(net, "input", [x], 0.9, most=1)
    assert len(found.merges) == 1
    apoptosis.merge(net, found)
    for reader in readers:
        drive = (before[reader] - shifts[reader]).norm()
        assert (pre_activations(net, reader, x) - before[reader]).norm() <= (found.bound + 1e-6) * drive


# ---------------------------------------------------------------------- what cannot be


def test_finding_changes_nothing() -> None:
    net, x = SAMPLES["convolutional"].network(), SAMPLES["convolutional"].inputs()
    net.train()
    before, random = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    apoptosis.find(net, "conv1", [x], 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("sample", "space", "given", "message"),
    [
        ("perceptron", "0", {"tolerance": 1.0}, r"tolerance is 1.0, but must be in \[0, 1\)"),
        ("perceptron", "0", {"method": "similar"}, "method is 'similar', but must be 'dependent' or 'twins'"),
        ("perceptron", "output", {}, "space 'output' is the output, but must be hidden"),
        ("perceptron", "input", {"method": "twins"}, "space 'input' is the input, but must be hidden.*use the method 'dependent'"),
        ("perceptron", "0", {"ridge": 0.0}, "ridge is 0.0, but must be positive"),
        ("perceptron", "0", {"batches": []}, "batches is empty, but must hold at least one"),
        ("perceptron", "0", {"batches": [], "method": "twins"}, "batches is empty, but must hold at least one"),
        ("perceptron", "0", {"stand_ins": -1}, "stand_ins is -1, but must be 0 or more"),
        ("coupled", "stem", {"method": "twins"}, "space 'stem' is computed by stem, block, but must be by one layer"),
        ("convolutional", "conv1", {"method": "twins"}, "has convolutions around it.*use the method 'dependent'"),
    ],
)
def test_what_cannot_be_judged_is_refused(sample: str, space: str, given: dict[str, object], message: str) -> None:
    net = SAMPLES[sample].network()
    arguments = {"batches": [SAMPLES[sample].inputs()], "tolerance": 0.1} | given
    with pytest.raises(ValueError, match=message):
        apoptosis.find(net, space, **arguments)  # type: ignore[arg-type]


def test_symmetries_of_functions_in_a_row() -> None:
    linear, wide = nn.Linear(4, 3), nn.Linear(3, 2)
    assert passage(network(linear, nn.Dropout(0.5), wide), "0").symmetry == "linear"
    assert passage(network(linear, nn.Dropout(0.5), nn.ReLU(), wide), "0").symmetry == "homogeneous"
    assert passage(network(linear, nn.Tanh(), nn.ReLU(), wide), "0").symmetry == "none"
    with pytest.raises(ValueError, match="is Softplus, but must be a function of single values"):
        passage(network(linear, nn.Softplus(), wide), "0")
