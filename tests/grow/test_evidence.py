import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from grow.evidence import Need, gather
from grow.evidence.step import StepGradients
from grow.network import Network
from grow.task import Batch

BOTH: frozenset[Need] = frozenset({"gradient", "curvature"})


class Residual(nn.Module):
    """Changes tensors in place where that could spoil what was watched."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.one(x))
        return self.head(self.activation(self.two(h)) + h)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 7), nn.ReLU(inplace=True), nn.Linear(7, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2, dilation=2),
        nn.BatchNorm2d(3),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def depthwise() -> nn.Module:
    """Every channel has a kernel of its own."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(48, 3)
    )


INPUTS = {mlp: (12,), Residual: (12,), convolutional: (2, 8, 8), depthwise: (2, 4, 4)}
networks = pytest.mark.parametrize("module", INPUTS)


def double(module: type[nn.Module], density: float = 1.0) -> Network:
    """A network in float64 that has a random share of its connections."""
    torch.manual_seed(0)
    network = Network(module(), torch.zeros(1, *INPUTS[module]))
    if density < 1:
        rng = np.random.default_rng(0)
        network.set_connections({c.layer: np.flatnonzero(rng.random(c.possible) < density) for c in network.topology.layers})
    return network.double()


def batches(module: type[nn.Module], *sizes: int) -> list[Batch]:
    draws = torch.Generator().manual_seed(3)
    shape = INPUTS[module]
    return [(torch.randn(size, *shape, generator=draws, dtype=torch.float64), torch.randint(3, (size,), generator=draws)) for size in sizes]


def weights(network: Network) -> dict[str, Tensor]:
    return {f"module.{name}.weight": layer.dense_weight() for name, layer in network.layers.items()}


def gathered(network: Network, data: list[Batch], needs: frozenset[Need]) -> dict[str, dict[str, Tensor]]:
    found = gather(network, data, functional.cross_entropy, needs, torch.Generator())
    return {need: {f"module.{name}.weight": found.layer(name)[need] for name in network.layers} for need in needs}


def unmasked(network: Network) -> Network:
    """The same function with all connections, the absent ones zero: what the dense gradient is the gradient of."""
    values = {name: layer.dense_weight().clone() for name, layer in network.layers.items()}
    network.set_connections(dict.fromkeys(values))
    with torch.no_grad():
        for name, layer in network.layers.items():
            assert torch.equal(layer.dense_weight(), values[name])
    return network.eval()


@networks
@pytest.mark.parametrize("kernel", ["dense", "csr", "compiled"])
def test_the_gradient_is_that_of_the_mean_loss_absent_connections_included(module: type[nn.Module], kernel: str) -> None:
    network, data = double(module, density=0.5), batches(module, 5, 3)
    network.use_kernels(lambda case: kernel, batch=8)
    found = gathered(network, data, frozenset({"gradient"}))["gradient"]
    network.use_kernels(lambda case: "dense", batch=8)
    oracle = unmasked(network)
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    functional.cross_entropy(oracle(inputs), targets).backward()
    for name, parameter in oracle.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad)


def stepped(network: Network, batch: Batch) -> StepGradients:
    """The gradients of one step, which is made with the same random numbers every time."""
    found = StepGradients()
    torch.manual_seed(7)
    with found.watching(network.layers):
        functional.cross_entropy(network.train()(batch[0]), batch[1]).backward()
    return found


def dense_gradients(network: Network, found: StepGradients) -> dict[str, Tensor]:
    evidence = found.evidence(network, network.layers)
    assert evidence is not None
    return {name: evidence.layer(name)["gradient"] for name in network.layers}


@networks
@pytest.mark.parametrize("kernel", ["dense", "csr", "compiled"])
def test_a_step_that_is_watched_tells_the_gradients_of_absent_connections(module: type[nn.Module], kernel: str) -> None:
    network, (batch,) = double(module, density=0.5), batches(module, 5)
    network.use_kernels(lambda case: kernel, batch=8)
    twin = copy.deepcopy(network)
    found = dense_gradients(network, stepped(network, batch))
    rehearsed = copy.deepcopy(twin)
    torch.manual_seed(7)
    guessed = StepGradients.rehearsed(rehearsed, rehearsed.layers, batch, functional.cross_entropy)
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in rehearsed.state_dict().items())
    assert all(parameter.grad is None for parameter in rehearsed.parameters())
    twin.use_kernels(lambda case: "dense", batch=8)
    torch.manual_seed(7)
    functional.cross_entropy(unmasked(twin).train()(batch[0]), batch[1]).backward()
    for name, layer in twin.layers.items():
        torch.testing.assert_close(found[name], layer.weight.grad)
        torch.testing.assert_close(dense_gradients(rehearsed, guessed)[name], found[name])
    assert all(not layer._forward_hooks for layer in network.layers.values())


@networks
def test_what_a_step_told_follows_edits_of_connections_and_a_checkpoint(module: type[nn.Module]) -> None:
    network, (batch,) = double(module), batches(module, 5)
    found = stepped(network, batch)
    network.remember(found)
    before = dense_gradients(network, found)
    network.prune_connections({next(iter(network.layers)): np.array([1, 3])})
    loaded = StepGradients.loaded(found.layers, found.tensors(), torch.device("cpu"))
    for told in (found, loaded):
        assert all(torch.equal(gradient, before[name]) for name, gradient in dense_gradients(network, told).items())


def test_what_a_step_told_stays_when_the_batch_is_filled_anew() -> None:
    (batch,) = batches(mlp, 5)
    network = double(mlp)
    found = stepped(network, batch)
    before = {name: gradient.clone() for name, gradient in dense_gradients(network, found).items()}
    batch[0].numpy()[:] = 0.0  # as a task does that has one buffer for all batches, unseen by torch
    for name, gradient in dense_gradients(network, found).items():
        assert torch.equal(gradient, before[name])
        assert gradient.any()


def test_of_other_units_and_of_what_was_changed_a_step_tells_nothing() -> None:
    (batch,) = batches(mlp, 5)
    for adding in (False, True):
        network = double(mlp)
        found = stepped(network, batch)
        network.remember(found)
        space = network.topology.hidden[0].name
        network.add_units(space, 1, torch.Generator(), 2, 2) if adding else network.remove_units(space, [1])
        assert not found.valid
        assert not found.tensors()
    network = double(mlp)
    read = torch.ones(2, 12, dtype=torch.float64)
    network.layers["0"].weight.requires_grad_(False)  # torch itself refuses the change otherwise
    changed = StepGradients()
    with changed.watching(network.layers):
        loss = network(read).sum()
        read.add_(1)
        loss.backward()
    assert not changed.valid


@networks
def test_the_curvature_is_the_diagonal_of_the_gauss_newton_matrix(module: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grow.evidence.products.SAMPLE_VALUES", 200)  # more than one block of samples
    network, data = double(module, density=0.5), batches(module, 4, 2)
    found = gathered(network, data, frozenset({"curvature"}))["curvature"]
    oracle, inputs = unmasked(network), torch.cat([x for x, _ in data])

    def logits(given: dict[str, Tensor]) -> Tensor:
        return functional_call(oracle, given, (inputs,))

    jacobians = jacrev(logits)(weights(oracle))  # each (B, C, *weight)
    p = logits(weights(oracle)).softmax(1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # (B, C, C)
    for name, jacobian in jacobians.items():
        expected = torch.einsum("bc...,bcd,bd...->...", jacobian, hessian, jacobian) / len(inputs)
        torch.testing.assert_close(found[name], expected)


def test_the_curvature_of_two_logits() -> None:
    """Logits w_k x, x = 2, p = (1/4, 3/4): x^2 p (1 - p) = 0.75 for both."""
    network = Network(nn.Sequential(nn.Linear(1, 2, bias=False)), torch.zeros(1, 1))
    with torch.no_grad():
        next(network.parameters()).copy_(torch.tensor([[0.0], [np.log(3) / 2]]))
    found = gather(network, [(torch.tensor([[2.0]]), torch.tensor([0]))], functional.cross_entropy, BOTH, torch.Generator())
    layer = found.layer("0")
    assert layer["curvature"].flatten().tolist() == pytest.approx([0.75, 0.75])
    assert layer["gradient"].flatten().tolist() == pytest.approx([-1.5, 1.5])


@networks
def test_the_network_is_left_as_it_was(module: type[nn.Module]) -> None:
    network, data = double(module), batches(module, 4)
    network.train()
    frozen = list(network.modules())[-1].eval()
    functional.cross_entropy(network(data[0][0]), data[0][1]).backward()
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    state = torch.get_rng_state()
    with torch.no_grad():
        gathered(network, data, BOTH)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in network.modules()] == [m is not frozen for m in network.modules()]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True) if p.grad is not None)
    assert all(not layer._forward_hooks for layer in network.layers.values())


def test_what_is_not_needed_is_not_gathered() -> None:
    network = double(mlp)

    def forbidden(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("the loss is not needed")

    nothing = gather(network, [], forbidden, frozenset(), torch.Generator())
    assert [dict(nothing.layer(name).found) for name in network.layers] == [{}, {}]
    curved = gather(network, batches(mlp, 2), forbidden, frozenset({"curvature"}), torch.Generator())
    assert [list(curved.layer(name).found) for name in network.layers] == [["curvature"], ["curvature"]]
    with pytest.raises(ValueError, match="evidence holds curvature, but must hold 'gradient'; name it among the needs"):
        curved.layer("0")["gradient"]


def test_no_data_and_outputs_that_are_no_logits_are_errors() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        gathered(double(mlp), [], BOTH)
    network = Network(nn.Sequential(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 8, 8)).double()
    with pytest.raises(ValueError, match=r"outputs has shape \(2, 3, 6, 6\), but must be logits"):
        gathered(network, batches(convolutional, 2), frozenset({"curvature"}))


@pytest.mark.gpu
@networks
def test_evidence_is_the_same_on_a_gpu(module: type[nn.Module]) -> None:
    data = batches(module, 4, 3)
    on_cpu = gathered(double(module, 0.5), data, BOTH)
    on_gpu = gathered(double(module, 0.5).cuda(), [(x.cuda(), y.cuda()) for x, y in data], BOTH)
    for need in on_cpu:
        for name, expected in on_cpu[need].items():
            torch.testing.assert_close(on_gpu[need][name].cpu(), expected)
