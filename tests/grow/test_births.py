"""New units by every method: what they leave as it was, what they promise, and the worked examples of the papers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grow.births import BIRTHS, GRADMAX_SCALE, Given, bridging_weights
from grow.bridge import bridge
from grow.criteria.units import UNIT_CRITERIA
from grow.kernels import KERNELS
from grow.network import Network
from tests.contracts.crossed import crossed, named
from tests.contracts.modules import NETWORKS, SAMPLES, Sample
from tests.grow.test_network import OPTIMIZERS, assert_sound, attached, everything, outputs, some, train


def squares(out: Tensor, targets: Tensor) -> Tensor:
    return (out - targets).square().mean()


def given(sample: Sample, **changed: object) -> Given:
    data = [(sample.inputs(seed), torch.randn(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)) for seed in (0, 1)]
    return replace(Given(data, squares, torch.Generator().manual_seed(0)), **changed)  # type: ignore[arg-type]


def loss(network: Network, by: Given) -> float:
    with torch.no_grad():
        network.eval()
        return float(sum(by.loss(network(x), t) for x, t in by.batches))


# Where the methods that look at delta and z are defined: no pooling between, one row a unit.
DEFINED = [("perceptron", "0"), ("perceptron", "2"), ("convolutional", "conv1"), ("convolutional", "fc1"), ("coupled", "side")]
DEFINED += [("coupled", "middle"), ("convolutional coupled", "side")]
BORN = {f"{birth}-{name}-{space}": (birth, name, space) for birth in BIRTHS for name, space in DEFINED}


@pytest.mark.parametrize(("kernel", "birth", "name", "space"), crossed(named(KERNELS), BORN, ("csr",)))
def test_units_are_born_state_survives_and_training_goes_on(birth: str, name: str, space: str, kernel: str) -> None:
    sample = SAMPLES[name]
    network, x = sample.network(kernel=kernel), sample.inputs()
    network.prune_connections(some(network, 0.3))
    optimizer = attached(network, OPTIMIZERS[len(space) % len(OPTIMIZERS)])
    train(network, optimizer, x)
    units, before = network.topology.units[space], everything(network, optimizer)
    held = outputs(network, x)
    BIRTHS[birth].add(network, space, 2, given(sample))
    assert network.topology.units[space] == units + 2
    if birth in ("random", "split"):
        torch.testing.assert_close(outputs(network, x), held, rtol=1e-12, atol=1e-12)
    if birth != "split":  # a split halves the weights of what survives
        network.remove_units(space, [units, units + 1])
        after = everything(network, optimizer)
        assert all(torch.equal(after[key], value) for key, value in before.items())
        BIRTHS[birth].add(network, space, 1, given(sample))
    train(network, optimizer, x)
    assert_sound(network, optimizer)


@pytest.mark.parametrize("birth", ["gradmax", "bridging"])
@pytest.mark.parametrize(("name", "space"), DEFINED)
def test_births_by_gradient_lower_the_loss_to_first_order(birth: str, name: str, space: str) -> None:
    """With the new outgoing weights scaled down to where the loss is linear in them."""
    sample = SAMPLES[name]
    for seed in range(3):
        network, by = sample.network(seed), given(sample, generator=torch.Generator().manual_seed(seed))
        before, old = loss(network, by), network.topology.units[space]
        BIRTHS[birth].add(network, space, 1, by)
        for layer in network.topology.consumers(space):
            weight = network.layers[layer.layer].weight
            reads = next(segment.repeat for segment in layer.source if segment.space == space)
            first = 0 if layer.source[0].space == space else weight.shape[1] - reads * (old + 1)
            with torch.no_grad():
                weight[:, first + reads * old : first + reads * (old + 1)] *= 1e-3
        assert loss(network, by) < before


def linear_bridge(width: int, inputs: int, outs: int) -> Network:
    module = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outs))
    return Network(module, torch.zeros(1, inputs)).double()


def deltas(out: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient at the outputs is the targets."""
    return (out * targets).sum()


def test_gradmax_finds_the_directions_of_the_worked_example() -> None:
    """M = [[2, 1], [1, -1]]: u_1 = (0.957092, 0.289784), singular values 2.302776, 1.302776 (arXiv 2201.05125)."""
    z = torch.tensor([[1.0, 0], [0, 2], [1, 1]], dtype=torch.float64)
    delta = torch.tensor([[1.0, 0], [0, -1], [1, 1]], dtype=torch.float64)
    network = linear_bridge(3, 2, 2)
    column_norm = float(network.layers["2"].dense_weight().norm(dim=0).mean())
    before = outputs(network, z)
    BIRTHS["gradmax"].add(network, "0", 1, Given([(z, delta)], deltas, torch.Generator()))
    new = network.layers["2"].dense_weight()[:, 3]
    assert float(new.norm()) == pytest.approx(column_norm / 2)
    torch.testing.assert_close((new / new.norm()).abs(), torch.tensor([0.957092, 0.289784], dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert float((outputs(network, z) - before).abs().max()) < 5e-3  # all but kept
    deltas(network(z), delta).backward()
    assert float(network.layers["0"].weight.grad[3].norm()) > 0  # a zero fan-in would stay for ever


def test_a_gradmax_unit_gets_a_larger_gradient_than_a_random_one_of_the_same_size() -> None:
    sample = SAMPLES["perceptron"]
    network, by = sample.network(), given(sample)
    BIRTHS["gradmax"].add(network, "2", 1, by)
    found = []
    for draw in range(20):
        if draw:
            with torch.no_grad():
                column = network.layers["4"].weight[:, 4]
                random = torch.randn(3, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
                column.copy_(random / random.norm() * column.norm())
        network.zero_grad()
        sum(by.loss(network(x), t) for x, t in by.batches).backward()
        found.append(float(network.layers["2"].weight.grad[4].norm()))
    # ReLU shows the unit only half of the samples, so that the largest gradient is not guaranteed; it is well above the average.
    assert found[0] > np.mean(found[1:])


def test_bridging_weights_of_the_worked_example_with_the_sign_that_lowers_the_loss() -> None:
    """z = (1, 2), du = (0.3, -0.1, 0.05), pairs (0, 0), (0, 1): the paper's w_in has the other sign, which raises the loss."""
    matrix = torch.outer(torch.tensor([0.3, -0.1, 0.05]), torch.tensor([1.0, 2.0]))
    incoming, outgoing = bridging_weights(matrix, 1, 2, None)
    torch.testing.assert_close(outgoing, torch.tensor([[1.322319, 0, 0]]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(incoming, torch.tensor([[-0.547723, -0.774597]]), rtol=1e-5, atol=1e-6)
    assert float(outgoing[0] @ matrix @ incoming[0]) < 0 < float(outgoing[0] @ matrix @ -incoming[0])


def test_bridging_units_have_the_birth_strength() -> None:
    network, by = SAMPLES["perceptron"].network(), given(SAMPLES["perceptron"])
    strengths = [float(network.layers[name].dense_weight().abs().mean()) for name in ("0", "2")]
    BIRTHS["bridging"].add(network, "0", 1, by)
    row, column = network.layers["0"].dense_weight()[6], network.layers["2"].dense_weight()[:, 6]
    for line, strength in zip((row, column), strengths, strict=True):
        assert float(line[line != 0].abs().mean()) == pytest.approx(0.3 * strength)


@pytest.mark.parametrize("birth", ["random", "gradmax", "bridging"])
def test_sparse_births_have_no_more_connections_than_asked_for(birth: str) -> None:
    network = SAMPLES["perceptron"].network()
    BIRTHS[birth].add(network, "0", 2, given(SAMPLES["perceptron"], fan_in=2, fan_out=1))
    first, second = network.topology.layer("0").positions() // 5, network.topology.layer("2").positions() % 8
    for unit in (6, 7):
        assert 1 <= (first == unit).sum() <= 2
        assert (second == unit).sum() == 1


def test_the_unit_with_the_highest_score_is_split_and_the_twins_part_ways() -> None:
    """The same incoming weights, but other shares of the outgoing ones, and with them other gradients."""
    for kernel in KERNELS:
        network, by = SAMPLES["perceptron"].network(kernel=kernel), given(SAMPLES["perceptron"], criterion=UNIT_CRITERIA["fan_in_norm"])
        chosen = int(network.layers["0"].dense_weight().norm(dim=1).argmax())
        BIRTHS["split"].add(network, "0", 1, by)
        assert torch.equal(network.layers["0"].dense_weight()[6], network.layers["0"].dense_weight()[chosen])
        train(network, attached(network, "sgd"), SAMPLES["perceptron"].inputs())
        assert not torch.allclose(network.layers["0"].dense_weight()[6], network.layers["0"].dense_weight()[chosen], rtol=1e-6)


@pytest.mark.parametrize("module", ["linear", "convolutional"])
def test_the_gradients_of_gradmax_units_are_the_singular_values(module: str) -> None:
    """With f(a) = a and next to no fan-in: dL/dv = M^T w = sigma |w|, and no other w of that norm gives more."""
    linear = nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    strided = nn.Conv2d(4, 3, 3, stride=2, padding=1)
    maps = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Identity(), strided, nn.Tanh(), nn.Flatten(), nn.Linear(27, 3))
    network = Network(linear if module == "linear" else maps, torch.zeros(1, *((6,) if module == "linear" else (2, 6, 6)))).double()
    x = torch.randn(30, *network.example.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by = Given([(x, torch.zeros(30, 3, dtype=torch.float64))], squares, torch.Generator())
    found = bridge(network, "0", by.batches, by.loss)
    largest = torch.linalg.svdvals(found.matrix)[:2] * GRADMAX_SCALE * found.outgoing_norm
    BIRTHS["gradmax"].add(network, "0", 2, by)
    squares(network(x), by.batches[0][1]).backward()
    torch.testing.assert_close(network.layers["0"].weight.grad[4:].flatten(1).norm(dim=1), largest, rtol=2e-3, atol=0)


def test_what_is_seen_in_pieces_adds_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, space in (("convolutional", "conv1"), ("perceptron", "0")):
        network, by = SAMPLES[name].network(), given(SAMPLES[name])
        whole = bridge(network, space, by.batches, by.loss).matrix
        with monkeypatch.context() as patch:
            patch.setattr("grow.bridge.PIECE_VALUES", 1)
            pieces = bridge(network, space, by.batches, by.loss)
            assert sum(1 for _ in pieces.pieces()) == 16  # one a sample
            torch.testing.assert_close(pieces.matrix, whole)


@pytest.mark.parametrize(
    ("birth", "name", "space", "count", "changed", "message"),
    [
        ("gradmax", "convolutional", "conv2", 1, {}, "space 'conv2' is resized before layer 'fc1', but must be read as it is computed"),
        ("bridging", "convolutional", "conv2", 1, {}, "space 'conv2' is resized before layer 'fc1'"),
        ("gradmax", "sequence transformer", "embedding", 1, {}, "is resized before layer .*, but must be read as it is computed"),
        ("gradmax", "perceptron", "2", 4, {}, r"count is 4, but must be in 1\.\.3"),
        ("bridging", "perceptron", "2", 0, {}, "count is 0, but must be at least 1"),
        ("split", "perceptron", "0", 7, {}, r"count is 7, but must be in 1\.\.6"),
        ("split", "perceptron", "0", 1, {"batches": []}, "batches is empty, but must hold at least one batch"),
        ("gradmax", "perceptron", "0", 1, {"batches": []}, "batches is empty, but must hold at least one batch"),
        ("bridging", "perceptron", "output", 1, {}, "space 'output' is the output, but must be hidden"),
        ("bridging", "perceptron", "0", 1, {"fan_in": 0}, "fan_in or fan_out is 0, but must be at least 1"),
        ("random", "perceptron", "0", 1, {"fan_out": 0}, "fan_out is 0, but must be at least 1"),
    ],
)
def test_a_birth_that_cannot_be_leaves_every_byte(
    birth: str, name: str, space: str, count: int, changed: dict[str, object], message: str
) -> None:
    sample = {**SAMPLES, **NETWORKS}[name]
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adam")
    train(network, optimizer, x)
    before = everything(network, optimizer)
    with pytest.raises(ValueError, match=message):
        BIRTHS[birth].add(network, space, count, given(sample, **changed))
    after = everything(network, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
