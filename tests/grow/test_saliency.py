"""The worked examples of the papers, and what their estimates must agree with."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from grow.criteria import Criterion, criterion
from grow.evidence import Effort, LayerEvidence, Need, gather
from grow.network import Network
from grow.rounds import exponential
from grow.scoring import to_prune
from grow.task import Batch


def given(weight: list[list[float]], **found: list[list[float]]) -> LayerEvidence:
    needs: dict[Need, Tensor] = {need: torch.tensor(values) for need, values in found.items()}  # type: ignore[misc]
    return LayerEvidence(torch.tensor(weight), needs, torch.Generator())


def score(name: str, evidence: LayerEvidence) -> list[list[float]]:
    return criterion(name).score(evidence).double().tolist()  # type: ignore[no-any-return]


def single(weights: list[list[float]], activation: nn.Module | None = None) -> Network:
    """One linear layer without bias."""
    layer = nn.Linear(len(weights[0]), len(weights), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
    return Network(nn.Sequential(layer), torch.zeros(1, len(weights[0]))).double()


def two(first: list[list[float]], second: list[list[float]]) -> Network:
    """Two linear layers with a ReLU between them."""
    layers = [nn.Linear(len(w[0]), len(w)) for w in (first, second)]
    with torch.no_grad():
        for layer, weights in zip(layers, (first, second), strict=True):
            layer.weight.copy_(torch.tensor(weights))
    return Network(nn.Sequential(layers[0], nn.ReLU(), layers[1]), torch.zeros(1, len(first[0])))


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum(1).mean() / 2


def scores(network: Network, name: str, batches: list[Batch], loss=half_square, effort: Effort = Effort()) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]  # noqa: B008
    found = gather(network, batches, loss, criterion(name).needs, torch.Generator().manual_seed(0), effort)
    return {layer: criterion(name).score(found.layer(layer)) for layer in network.layers}


# ---------------------------------------------------------------- worked examples


def test_snip_of_a_linear_unit() -> None:
    """y = w.x, w = (1, -2, 0.5), x = (1, 1, 2), target 1, L = (y - t)^2 / 2: g = (-1, -1, -2)."""
    network = single([[1.0, -2.0, 0.5]])
    batch = (torch.tensor([[1.0, 1.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    assert scores(network, "snip", [batch])["0"].tolist() == [[1.0, 2.0, 1.0]]  # 0.25, 0.5, 0.25 of their sum


def test_taylor_keeps_what_the_mean_gradient_cancels() -> None:
    """x = 1, w = 1, targets 0 and 2 in a batch of their own: gradients 1 and -1."""
    network = single([[1.0]])
    batches = [(torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), t, dtype=torch.float64)) for t in (0.0, 2.0)]
    assert scores(network, "taylor", batches)["0"].tolist() == [[1.0]]
    assert scores(network, "snip", batches)["0"].tolist() == [[0.0]]


def test_grasp_of_a_quadratic() -> None:
    """L = w^T diag(1, 2, 4) w / 2 at w = (1, 1, 0.75): g = (1, 2, 3), H g = (1, 4, 12)."""
    network = single([[1.0, 1.0, 0.75]])
    inputs = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).sqrt()) * 3**0.5
    found = scores(network, "grasp", [(inputs, torch.zeros(3, 1, dtype=torch.float64))])["0"]
    assert found[0].tolist() == pytest.approx([1, 4, 9])  # the paper's score is the negative: remove index 0 first


def test_synflow_of_two_layers() -> None:
    network = two([[1.0, -2.0], [3.0, 0.5]], [[2.0, -1.0]])
    found = gather(network, [], half_square, frozenset({"synflow"}), torch.Generator())
    assert score("synflow", found.layer("0")) == [[2, 4], [3, 0.5]]
    assert score("synflow", found.layer("2")) == [[6, 3.5]]


def test_lamp_of_three_weights() -> None:
    assert score("lamp", given([[1.0, 2.0, -3.0, 0.0]]))[0] == pytest.approx([1 / 14, 4 / 13, 1, 0])


def test_lamp_looks_at_the_whole_layer_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grow.evidence.base.BLOCK_VALUES", 2)
    network = two([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.5]])
    found = gather(network, [], half_square, frozenset(), torch.Generator())
    chosen = to_prune(network, criterion("lamp"), found, 2)
    assert {layer: positions.tolist() for layer, positions in chosen.items()} == {"0": [0, 1], "2": []}  # 1/30, 4/29 < 1/3.25


def test_obd_with_its_sign() -> None:
    evidence = given([[2.0, -1.0]], curvature=[[1.0, 4.0]], gradient=[[3.0, 0.5]])
    assert score("obd_signed", evidence) == [[2 - 6, 2 + 0.5]]


def test_a_negative_estimate_of_the_curvature_counts_as_none() -> None:
    assert score("obd_hutchinson", given([[2.0, 2.0]], hutchinson=[[-3.0, 1.0]])) == [[0, 2]]


# ---------------------------------------------------------------- estimates of the curvature


def small(compressed: bool = False) -> Network:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.zeros(1, 4)).double()
    network.set_connections({"0": np.array([0, 1, 5, 6, 9, 13, 15, 18]), "2": np.array([0, 3, 6, 7, 9, 14])})
    if compressed:
        network.use_kernels(lambda case: "csr", batch=8)
    return network


def labelled(samples: int) -> Batch:
    draws = torch.Generator().manual_seed(5)
    return torch.randn(samples, 4, generator=draws, dtype=torch.float64), torch.randint(3, (samples,), generator=draws)


@pytest.mark.parametrize("compressed", [False, True])
def test_hutchinson_comes_to_the_diagonal_of_the_hessian(compressed: bool) -> None:
    network, (inputs, targets) = small(compressed), labelled(6)
    plain = small()

    def loss(name: str, weight: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(plain, {f"module.{name}.weight": weight}, (inputs,)), targets)

    found = gather(
        network, [(inputs, targets)], functional.cross_entropy, frozenset({"hutchinson"}), torch.Generator().manual_seed(0), Effort(1000)
    )
    for name, layer in plain.layers.items():
        own = torch.autograd.functional.hessian(partial(loss, name), layer.weight.detach())  # type: ignore[no-untyped-call]
        diagonal = own.reshape(layer.weight.numel(), -1).diagonal().reshape(layer.weight_shape) * (layer.dense_weight() != 0)
        torch.testing.assert_close(found.layer(name)["hutchinson"], diagonal, rtol=0.2, atol=0.02)


@pytest.mark.parametrize("sizes", [(4,), (3, 1)])
def test_the_empirical_fisher_is_the_mean_of_the_samples_squared_gradients(sizes: tuple[int, ...]) -> None:
    network, (inputs, targets) = small(), labelled(4)
    batches = list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))
    found = gather(network, batches, functional.cross_entropy, frozenset({"fisher"}), torch.Generator())
    network.set_connections({"0": None, "2": None})  # all connections, the new ones zero: the same function
    for name, layer in network.layers.items():
        squares = torch.zeros_like(layer.weight)
        for x, y in zip(inputs.split(1), targets.split(1), strict=True):
            (g,) = torch.autograd.grad(functional.cross_entropy(network(x), y), layer.weight)
            squares += g**2 / len(inputs)
        torch.testing.assert_close(found.layer(name)["fisher"], squares)


def test_labels_drawn_from_the_outputs_give_the_gauss_newton_diagonal_in_the_mean() -> None:
    network, batch = small(), labelled(5)
    draws = torch.Generator().manual_seed(0)
    found = gather(network, [batch], functional.cross_entropy, frozenset({"curvature", "mc_fisher"}), draws, Effort(probes=3000))
    for name in network.layers:
        torch.testing.assert_close(found.layer(name)["mc_fisher"], found.layer(name)["curvature"], rtol=0.1, atol=0.01)


def test_empirical_fisher_of_one_label_is_not_the_gauss_newton_diagonal() -> None:
    """Logits w_k x, x = 2, p = (1/4, 3/4), label 0: (1 - p)^2 x^2 = 2.25 for both, against 0.75."""
    network = single([[0.0], [float(np.log(3)) / 2]])
    batch = (torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([0]))
    found = gather(network, [batch], functional.cross_entropy, frozenset({"fisher", "curvature"}), torch.Generator())
    assert found.layer("0")["fisher"].flatten().tolist() == pytest.approx([2.25, 2.25])
    assert found.layer("0")["curvature"].flatten().tolist() == pytest.approx([0.75, 0.75])


# ---------------------------------------------------------------- momentum


def test_momentum_is_the_dense_buffer_of_sgd_on_weights_that_stand_still() -> None:
    network = small()
    batches = [labelled(3), labelled(5), labelled(4)]
    found = gather(network, batches, functional.cross_entropy, frozenset({"momentum"}), torch.Generator(), Effort(decay=0.7))
    network.set_connections({"0": None, "2": None})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.7)
    for inputs, targets in batches:
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    for name, layer in network.layers.items():
        torch.testing.assert_close(found.layer(name)["momentum"], optimizer.state[layer.weight]["momentum_buffer"])


# ---------------------------------------------------------------- sequences


@pytest.mark.parametrize("need", ["gradient", "fisher"])
def test_positions_of_a_sequence_share_the_weight(need: Need) -> None:
    """The squares are those of a sample's gradient, summed over its positions first."""
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(1, 3)).double()
    inputs, targets = torch.randn(3, 5, 3, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return ((outputs - wanted) ** 2).sum((1, 2)).mean()

    found = gather(network, [(inputs, targets)], loss, frozenset({need}), torch.Generator())
    for name, layer in network.layers.items():
        singles = [torch.autograd.grad(loss(network(inputs[i : i + 1]), targets[i : i + 1]), layer.weight)[0] for i in range(3)]
        expected = torch.stack(singles if need == "gradient" else [g**2 for g in singles]).mean(0)
        torch.testing.assert_close(found.layer(name)[need], expected)


# ---------------------------------------------------------------- before training


def test_synflow_is_conserved_by_layers_and_by_units() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)
    )
    network = Network(module, torch.zeros(1, 2, 6, 6))
    found = gather(network, [], half_square, frozenset({"synflow"}), torch.Generator())
    conv, hidden, output = (found.layer(name)["synflow"] for name in network.layers)
    assert conv.dtype == torch.float64
    torch.testing.assert_close(conv.sum(), output.sum())
    torch.testing.assert_close(hidden.sum(), output.sum())
    torch.testing.assert_close(hidden.sum(1), output.sum(0))  # what flows into a unit flows out of it
    torch.testing.assert_close(conv.flatten(1).sum(1), hidden.reshape(6, 3, 16).sum((0, 2)))


def test_synflow_in_rounds_leaves_no_layer_empty_and_meets_the_count() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 30))

    def evidence():  # type: ignore[no-untyped-def]
        return gather(network, [], half_square, frozenset({"synflow"}), torch.Generator())

    for left in exponential(network.topology.connections, 30, 20):
        network.prune_connections(to_prune(network, criterion("synflow"), evidence(), network.topology.connections - left))
    assert network.topology.connections == 30
    after = gather(network, [], half_square, frozenset({"synflow"}), torch.Generator())
    assert float(after.layer("0")["synflow"].sum()) > 0  # a path from the input to the output is left


def test_rounds_keep_the_same_share_each() -> None:
    assert exponential(1000, 125, 3) == [500, 250, 125]
    with pytest.raises(ValueError, match="end is 0, but must be between 1 and start, 5"):
        exponential(5, 0, 3)
    with pytest.raises(ValueError, match="rounds is 0, but must be at least 1"):
        exponential(5, 1, 0)


def test_synflow_refuses_what_it_cannot_neutralise() -> None:
    network = Network(
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 2, 1)), torch.zeros(1, 2, 3, 3)
    )
    with pytest.raises(ValueError, match="batch norm '1' has no running statistics, but synflow must neutralise them; track them"):
        gather(network, [], half_square, frozenset({"synflow"}), torch.Generator())


def test_criteria_of_absent_connections_need_data() -> None:
    for name in ("gradient", "taylor", "obd_hutchinson", "grasp"):
        wanted: Criterion = criterion(name)
        with pytest.raises(ValueError, match="batches is empty, but must hold at least one batch"):
            gather(small(), [], half_square, wanted.needs, torch.Generator())


@pytest.mark.parametrize("bad", [{"probes": 0}, {"decay": 1.0}])
def test_effort_out_of_range_is_an_error(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"(probes is 0|decay is 1\.0), but must be"):
        Effort(**bad)  # type: ignore[arg-type]
