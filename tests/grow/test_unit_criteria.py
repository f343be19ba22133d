"""Which units are worth having, and which go."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from grow.criteria.units import UNIT_CRITERIA, choose_units, unit_criterion
from grow.kernels import KERNELS
from grow.network import Network
from grow.topology import columns_of
from grow.unit_evidence import SpaceEvidence, gather_units
from tests.contracts.modules import SAMPLES, Sample
from tests.grow.test_network import some

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def batches(sample: Sample, number: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(sample.inputs(seed), torch.arange(8) % 3) for seed in range(number)]


def evidence(
    network: Network, data: list[tuple[Tensor, Tensor]], criterion: str, spaces: list[str] | None = None
) -> dict[str, SpaceEvidence]:
    return gather_units(network, data, loss, unit_criterion(criterion).needs, torch.Generator().manual_seed(0), spaces)


def scores(network: Network, data: list[tuple[Tensor, Tensor]], criterion: str, spaces: list[str] | None = None) -> dict[str, Tensor]:
    found = evidence(network, data, criterion, spaces)
    return {space: unit_criterion(criterion).score(values) for space, values in found.items()}


def given_activations() -> Network:
    """Three ReLU units that have the values of references 1.9: the inputs themselves."""
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    module[0].weight.data = torch.eye(3)
    return Network(module, torch.zeros(1, 3))


def test_share_of_zeros_of_the_worked_example() -> None:
    x = torch.tensor([[-5.0, 1, 2], [0, 0, 3], [-1, 4, 0], [0, 5, 1]])
    found = evidence(given_activations(), [(x[:2], torch.zeros(2, dtype=torch.int64)), (x[2:], torch.zeros(2, dtype=torch.int64))], "apoz")
    assert found["0"].zeros is not None
    assert found["0"].zeros.tolist() == [1, 0.25, 0.25]


def test_zeros_are_counted_before_pooling_hides_them() -> None:
    network, data = SAMPLES["convolutional"].network(), batches(SAMPLES["convolutional"])
    found = evidence(network, data, "apoz", ["conv1", "conv2"])
    x, inner = data[0][0], network.module.eval()
    with torch.no_grad():
        first = torch.relu(inner.norm1(inner.conv1(x)))
        second = torch.relu(inner.conv2(first))
    assert found["conv2"].zeros is not None
    single = evidence(network, data[:1], "apoz", ["conv1", "conv2"])["conv2"].zeros
    torch.testing.assert_close(single, (second == 0).double().mean((0, 2, 3)))


@every_sample
@pytest.mark.parametrize("kernel", KERNELS)
def test_taylor_is_the_squared_derivative_by_a_gate_on_the_unit(sample: Sample, kernel: str) -> None:
    """L with the unit's values scaled by (1 + t) for all that read it, differentiated at t = 0 by finite differences."""
    network, data = sample.network(kernel=kernel), batches(sample)
    network.prune_connections(some(network, 0.2))
    found = scores(network, data, "taylor")
    space = network.topology.hidden[-1].name
    readers = network.topology.consumers(space)
    expected = torch.zeros(network.topology.units[space], dtype=torch.float64)
    network.eval()
    for inputs, targets in data:
        for unit in range(len(expected)):
            values = []
            for step in (1e-5, -1e-5):
                handles = []
                for layer in readers:
                    columns = torch.from_numpy(np.concatenate(columns_of(network.topology, layer, space, np.array([unit]))))

                    def hook(_: nn.Module, arguments: tuple[Tensor], columns: Tensor = columns, step: float = step) -> tuple[Tensor]:
                        x = arguments[0].clone()
                        x[:, columns] *= 1 + step
                        return (x,)

                    handles.append(network.layers[layer.layer].register_forward_pre_hook(hook))
                with torch.no_grad():
                    values.append(loss(network(inputs), targets))
                for handle in handles:
                    handle.remove()
            expected[unit] += ((values[0] - values[1]) / 2e-5) ** 2 / len(data)
    torch.testing.assert_close(found[space], expected, rtol=1e-4, atol=1e-9)


def test_taylor_of_weights_is_the_joint_form_of_the_worked_example() -> None:
    """w = (1, -1), g = (0.5, 0.4): (0.5 - 0.4)^2 = 0.01, not 0.41."""
    module = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Identity(), nn.Linear(1, 1, bias=False))
    module[0].weight.data, module[2].weight.data = torch.tensor([[1.0, -1.0]]), torch.ones(1, 1)
    for kernel in KERNELS:
        network = Network(module, torch.zeros(1, 2))
        network.use_kernels(lambda case, kernel=kernel: kernel, 8)
        data = [(torch.tensor([[0.5, 0.4]]), torch.zeros(1))]
        found = gather_units(network, data, lambda out, _: out.sum(), frozenset({"weight_taylor"}), torch.Generator())
        assert found["0"].weight_taylor is not None
        torch.testing.assert_close(found["0"].weight_taylor, torch.tensor([0.01], dtype=torch.float64))


def test_norms_and_scales_are_those_of_the_weights() -> None:
    network = SAMPLES["convolutional"].network()
    conv, fc = network.layers["conv2"].dense_weight(), network.layers["fc1"].dense_weight()
    torch.testing.assert_close(scores(network, [], "fan_in_norm")["conv2"], conv.flatten(1).norm(dim=1))
    torch.testing.assert_close(scores(network, [], "fan_out_norm")["conv2"], fc.reshape(6, 5, 4).movedim(1, 0).flatten(1).norm(dim=1))
    assert torch.equal(scores(network, [], "batch_norm", ["conv1"])["conv1"], network.module.get_parameter("norm1.weight").detach().abs())


@pytest.mark.parametrize("name", UNIT_CRITERIA)
def test_every_criterion_gives_one_finite_score_per_unit_and_changes_nothing(name: str) -> None:
    sample = SAMPLES["convolutional"]
    network, data = sample.network(), batches(sample)
    network.train()
    before, random = {key: tensor.clone() for key, tensor in network.state_dict().items()}, torch.get_rng_state()
    found = scores(network, data, name, ["conv1"])
    assert found["conv1"].shape == (4,)
    assert bool(found["conv1"].isfinite().all())
    assert not found["conv1"].requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random)
    needs = unit_criterion(name).needs
    gathered = evidence(network, data, name, ["conv1"])["conv1"]
    for need in ("zeros", "taylor", "weight_taylor", "incoming", "outgoing", "scale"):
        assert (getattr(gathered, need) is not None) == (need in needs)


@pytest.mark.parametrize(
    ("criterion", "sample", "space", "data", "message"),
    [
        ("apoz", "convolutional", "fc1", True, "space 'fc1' has no rectifier, but must have one"),
        ("batch_norm", "perceptron", "0", True, "space '0' has no batch norm with a scale"),
        ("taylor", "perceptron", "0", False, "batches is empty, but must hold at least one batch"),
        ("random", "perceptron", "output", True, "space 'output' is the output, but must be hidden"),
    ],
)
def test_evidence_that_cannot_be_had_is_refused(criterion: str, sample: str, space: str, data: bool, message: str) -> None:
    network = SAMPLES[sample].network()
    with pytest.raises(ValueError, match=message):
        evidence(network, batches(SAMPLES[sample]) if data else [], criterion, [space])
    with pytest.raises(ValueError, match=r"unit criterion is 'apo', but must be one of .*; did you mean 'apoz'\?"):
        unit_criterion("apo")


# ---------------------------------------------------------------------- choice


@given(
    values=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=3),
    minimum=st.integers(1, 2),
    data=st.data(),
)
def test_exactly_so_many_units_go_the_lowest_first(values: list[list[int]], minimum: int, data: st.DataObject) -> None:
    given_scores = {str(number): torch.tensor(row, dtype=torch.float64) for number, row in enumerate(values)}
    spare = sum(max(0, len(row) - minimum) for row in values)
    count = data.draw(st.integers(0, spare))
    chosen = choose_units(given_scores, count, minimum)
    assert sum(map(len, chosen.values())) == count
    assert chosen.keys() <= given_scores.keys()
    for space, units in chosen.items():
        row = given_scores[space].tolist()
        assert len(row) - len(units) >= minimum
        assert [(row[u], u) for u in sorted(units, key=lambda u: (row[u], u))] == sorted(zip(row, range(len(row)), strict=True))[
            : len(units)
        ]
    with pytest.raises(ValueError, match=f"count is {spare + 1}, but must be in 0..{spare}"):
        choose_units(given_scores, spare + 1, minimum)


def test_what_is_no_number_and_what_would_empty_a_space_is_refused() -> None:
    with pytest.raises(ValueError, match="minimum of space 'a' is 0, but must be at least 1"):
        choose_units({"a": torch.ones(2)}, 1, 0)
    with pytest.raises(ValueError, match="scores of space 'a' are not all finite"):
        choose_units({"a": torch.tensor([1.0, torch.nan])}, 1)


def test_the_chosen_units_can_be_removed() -> None:
    network, data = SAMPLES["convolutional"].network(), batches(SAMPLES["convolutional"])
    for space, units in choose_units(scores(network, data, "taylor"), 5, {"conv1": 3}).items():
        network.remove_units(space, units)
    assert sum(space.units for space in network.topology.hidden) == 15 - 5
    assert network.topology.units["conv1"] >= 3
