from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from grow import optim
from grow.network import Network
from grow.optim import BIRTH

ADAMS: dict[str, tuple[type[torch.optim.Optimizer], Callable[..., torch.optim.Optimizer]]] = {
    "adam": (torch.optim.Adam, optim.Adam),
    "adamw": (torch.optim.AdamW, optim.AdamW),
}


def gradients(steps: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=dtype) for _ in range(steps)]


def trained(optimizer: torch.optim.Optimizer, parameter: Tensor, steps: list[Tensor]) -> Tensor:
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", optim.MOMENTS)
def test_an_optimizer_keeps_as_many_tensors_of_a_parameters_size_as_is_said_once_connections_have_grown(name: optim.Name) -> None:
    network = Network(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.zeros(1, 4))
    network.prune_connections({"0": np.array([0, 5])})
    optimizer = optim.make(name, network.parameters(), 0.01)
    network.attach(optimizer)
    for grown in ([], [5]):
        network.grow_connections({"0": np.array(grown, np.int64)})
        network(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    weight = network.layers["0"].weight
    assert (
        sum(isinstance(value, Tensor) and value.shape == weight.shape for value in optimizer.state[weight].values()) == optim.MOMENTS[name]
    )


@pytest.mark.parametrize("name", ADAMS)
def test_nothing_grown_means_torchs_own_update_bit_for_bit(name: str) -> None:
    stock, ours = ADAMS[name]
    start, steps = torch.randn(5), gradients(10, 5, torch.float32)
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    expected = trained(stock([one], lr=0.01, weight_decay=0.1), one, steps)
    assert torch.equal(trained(ours([other], lr=0.01, weight_decay=0.1), other, steps), expected)


@pytest.mark.parametrize("name", ADAMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_every_connection_moves_as_in_a_fresh_optimizer_of_its_own_age(name: str, dtype: torch.dtype, tolerance: float) -> None:
    stock, ours = ADAMS[name]
    steps = gradients(30, 3, dtype)
    parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizer = ours([parameter], lr=0.01, weight_decay=0.1)
    trained(optimizer, parameter, steps[:20])
    grown = nn.Parameter(torch.cat([parameter.detach(), torch.full((1,), 0.5, dtype=dtype)]))  # as an edit carries it
    state = {key: torch.cat([value, value.new_zeros(1)]) if value.dim() else value for key, value in optimizer.state.pop(parameter).items()}
    optimizer.state[grown] = {**state, BIRTH: torch.tensor([0.0, 0, 0, 20])}
    optimizer.param_groups[0]["params"] = [grown]
    later = [torch.cat([gradient, gradient[:1] * 3]) for gradient in steps[20:]]
    trained(optimizer, grown, later)

    old, fresh = nn.Parameter(torch.zeros(3, dtype=dtype)), nn.Parameter(torch.full((1,), 0.5, dtype=dtype))
    trained(stock([old], lr=0.01, weight_decay=0.1), old, steps)
    trained(stock([fresh], lr=0.01, weight_decay=0.1), fresh, [gradient[3:] for gradient in later])
    torch.testing.assert_close(grown.detach(), torch.cat([old, fresh]).detach(), rtol=tolerance, atol=0)


def test_gradients_are_still_there_after_the_step() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([parameter])
    trained(optimizer, parameter, gradients(1, 2, torch.float32))
    optimizer.state[parameter][BIRTH] = torch.tensor([0.0, 1])
    gradient = torch.ones(2)
    parameter.grad = gradient
    optimizer.step()
    assert parameter.grad is gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_state_survives_being_saved_and_loaded(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = optim.Adam([parameter])
    trained(optimizer, parameter, gradients(2, 2, dtype))
    optimizer.state[parameter]["step"] += 1000
    optimizer.state[parameter][BIRTH] = torch.tensor([0.0, 1001])
    twin = nn.Parameter(parameter.detach().clone())
    other = optim.Adam([twin])
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    assert torch.equal(other.state[twin][BIRTH], optimizer.state[parameter][BIRTH])
    assert other.state[twin][BIRTH].dtype == torch.float32
    more = gradients(3, 2, dtype)
    assert torch.equal(trained(optimizer, parameter, more), trained(other, twin, more))


def test_a_sparse_gradient_is_refused_before_the_step_is_counted() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([parameter])
    trained(optimizer, parameter, gradients(1, 2, torch.float32))
    optimizer.state[parameter][BIRTH] = torch.tensor([0.0, 1])
    parameter.grad = torch.ones(2).to_sparse()
    with pytest.raises(ValueError, match=r"gradient of a parameter of shape \(2,\) is sparse, but must be dense"):
        optimizer.step()
    assert optimizer.state[parameter]["step"] == 1


def test_optimizers_are_made_by_name() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    assert (
        optim.make("sgd", parameters, 0.1, 0.8, 0.01).defaults | {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
        == optim.make("sgd", parameters, 0.1, 0.8, 0.01).defaults
    )
    assert isinstance(optim.make("adam", parameters, 0.1), optim.Adam)
    assert isinstance(optim.make("adamw", parameters, 0.1), optim.AdamW)
    assert isinstance(optim.make("rmsprop", parameters, 0.1), torch.optim.RMSprop)
    with pytest.raises(ValueError, match="optimizer is 'lion', but must be one of sgd, adam, adamw, rmsprop"):
        optim.make("lion", parameters, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: torch.optim.Adam(p), "its step count is shared by all connections; use grow.optim.Adam"),
        (lambda p: torch.optim.AdamW(p), "use grow.optim.AdamW"),
        (lambda p: torch.optim.Adagrad(p), "optimizer is Adagrad, but must be torch.optim.SGD, torch.optim.RMSprop"),
        (lambda p: torch.optim.RMSprop(p, maximize=True), "maximize is True, but must be False"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1), "dampening is 0.1, but must be 0"),
        (lambda p: optim.Adam(p, amsgrad=True), "amsgrad is True, but must be False"),
        (lambda p: optim.Adam(p, maximize=True), "maximize is True, but must be False"),
    ],
)
def test_an_optimizer_that_could_not_follow_an_edit_exactly_is_refused(
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        optim.check_editable(build([nn.Parameter(torch.ones(2))]))


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="closure is given, but must be None"):
        optim.Adam([nn.Parameter(torch.ones(2))]).step(lambda: 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"centered": True}, {"centered": True, "momentum": 0.5, "weight_decay": 0.1}])
def test_a_connection_grown_under_rmsprop_moves_as_in_a_fresh_optimizer(options: dict[str, float]) -> None:
    network = Network(nn.Sequential(nn.Linear(4, 3, bias=False)), torch.zeros(1, 4)).double()
    network.prune_connections({"0": np.array([2, 7])})
    optimizer = torch.optim.RMSprop(network.parameters(), lr=0.01, **options)
    network.attach(optimizer)
    steps = [gradient.reshape(3, 4) for gradient in gradients(30, 12, torch.float64)]
    for gradient in steps[:20]:
        _step(network, optimizer, gradient)
    network.grow_connections({"0": np.array([7])})
    fresh = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    other = torch.optim.RMSprop([fresh], lr=0.01, **options)
    for gradient in steps[20:]:
        _step(network, optimizer, gradient)
        fresh.grad = gradient[1, 3:].clone()
        other.step()
    weight = network.layers["0"].dense_weight()
    torch.testing.assert_close(weight[1, 3:], fresh.detach(), rtol=1e-14, atol=0)
    assert weight[0, 2] == 0


def _step(network: Network, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    layer = network.layers["0"]
    assert isinstance(layer.mask, Tensor)
    layer.weight.grad = gradient * layer.mask  # what the masked product hands back
    optimizer.step()


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8),
    ],
)
def test_torchs_learning_rate_schedulers_go_on_across_edits(make_scheduler: Callable[[torch.optim.Optimizer], LRScheduler]) -> None:
    rates: list[list[float]] = []
    for edited in (False, True):
        network = Network(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        network.attach(optimizer)
        scheduler, seen = make_scheduler(optimizer), []
        for step in range(6):
            if edited and step in (2, 4):
                network.remove_units("0", [0])
            before = network.module.get_parameter("2.bias").detach().clone()
            optimizer.zero_grad()
            network(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            seen.append(float(optimizer.param_groups[0]["lr"]))
            assert not torch.equal(before, network.module.get_parameter("2.bias"))  # the step reaches the living parameters
            scheduler.step()
        rates.append(seen)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 2
