"""On a device that is not the CPU everything is as on the CPU: nothing is forgotten on the wrong one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils.data import DataLoader, TensorDataset

import grow
from grow.editing.insertion import Insertion
from grow.kernels import KERNELS, aged
from grow.layers import sparse_layer
from tests.elsewhere import DEVICE, elsewhere, here

pytestmark = pytest.mark.filterwarnings("ignore:points is .* two standard errors")


def test_what_is_elsewhere_does_not_mix_with_what_is_here() -> None:
    with elsewhere():
        x, near = torch.arange(6.0).reshape(2, 3).to(DEVICE).requires_grad_(), torch.ones(2, 3)
        assert x.device == DEVICE
        assert torch.zeros(3, device=DEVICE).device == x.new_zeros(3).device == DEVICE
        (x * 2 + 1).sum().backward()
        assert x.grad is not None
        assert x.grad.device == DEVICE
        assert torch.equal(x.grad.cpu(), 2 * near)
        assert torch.equal((x[torch.tensor([1, 0])] * torch.tensor(2.0)).detach().cpu(), torch.tensor([[6.0, 8.0, 10.0], [0.0, 2.0, 4.0]]))
        for mixed in (
            lambda: x + near,
            lambda: x.index_select(0, torch.tensor([1])),
            lambda: torch.cat([x, near]),
            lambda: x.sum(0) @ near.t(),
        ):
            with pytest.raises(RuntimeError, match="tensors on meta and tensors on cpu"):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            x.detach().numpy()


class Convolutional(nn.Module):
    """Every kind of layer with connections, and every norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise, self.added = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 3, padding=1)
        self.hidden, self.evened, self.dropped, self.last = nn.Linear(60, 24), nn.LayerNorm(24), nn.Dropout(0.1), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, 1, 2, 5) -> (B, 2)."""
        x = self.depthwise(relu(self.norm(self.first(x))))
        x = torch.flatten(relu(x + self.added(x)), 1)
        return self.last(self.dropped(relu(self.evened(self.hidden(x)))))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))


def loaders(shape: tuple[int, ...]) -> list[DataLoader[Any]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 10, generator=generator)
    targets = (inputs[:, :3].sum(1) > 0).long()
    parts = [TensorDataset(inputs[rows].reshape(-1, *shape), targets[rows]) for rows in (slice(0, 200), slice(200, 300))]
    return [DataLoader(part, batch_size=20) for part in parts]


INSERTED = ((3, Insertion("0", "deeper", "identity")), (5, Insertion("2", "side", "residual", units=6, fan_in=4, fan_out=4)))
PERCEPTRON: list[dict[str, Any]] = [
    {"density": 0.3, "units": {"0": 12}, "unit_pruning": "weight_taylor", "optimizer": "sgd", "average": 0.9, "batches": 0},
    {"density": 0.6, "insertions": INSERTED, "allocation": "erk", "steps": 16},
]
CONVOLUTIONAL: list[dict[str, Any]] = [
    {"density": 0.2, "pruning": "obd", "units": {"first": 4}},
    {"density": 0.4, "initial": "minimal", "birth": "split"},
]
LONG: list[dict[str, Any]] = [
    *(
        {"density": 0.2, "pruning": name}
        for name in ("magnitude", "lamp", "taylor", "snip", "grasp", "movement", "momentum", "obd_hutchinson")
    ),
    *({"density": 0.2, "pruning": "magnitude", "growth": name} for name in ("random", "momentum")),
    *({"density": 0.4, "initial": "minimal", "birth": name} for name in ("random", "gradmax", "bridging")),
    {"density": 0.2, "splicing": True, "optimizer": "sgd"},
    *({"density": 0.2, "initial": name} for name in ("radixnet", "erk", "expander")),
    *({"density": 0.25, "pattern": name} for name in ("block_2x2", "2_of_4", "fan_in")),
    {"density": 1.0, "apoptosis": 0.02, "update_interval": 5},
    {"tolerance": 3.0},
    {"density": 0.2, "schedule": "cyclic", "begin": 0.2, "cycles": 2, "allocation": "erk", "smoothing": 0.9, "pruning": "taylor"},
]


def trained(convolutional: bool, settings: dict[str, Any], device: object) -> tuple[dict[str, Tensor], float]:
    torch.manual_seed(1)
    model, shape = (Convolutional(), (1, 2, 5)) if convolutional else (perceptron(), (10,))
    length: dict[str, Any] = {"epochs": 5} if "tolerance" in settings else {"steps": 12}
    interval = {} if "tolerance" in settings else {"update_interval": 4}
    found = grow.fit(model, *loaders(shape), **{**length, "learning_rate": 0.02, "device": str(device), **interval, **settings})
    return {name: here(tensor).detach() for name, tensor in found.network.tensors().items()}, found.accuracy


@pytest.mark.parametrize(
    ("convolutional", "settings"),
    [
        *((False, settings) for settings in PERCEPTRON),
        *((True, settings) for settings in CONVOLUTIONAL),
        *(pytest.param(convolutional, settings, marks=pytest.mark.slow) for convolutional in (False, True) for settings in LONG),
    ],
)
def test_what_is_grown_and_pruned_elsewhere_is_what_is_grown_and_pruned_here(
    convolutional: bool, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aged, "available", lambda: False)  # Adam's loop is the CPU's alone, and rounds otherwise than torch's operations
    expected, accuracy = trained(convolutional, settings, "cpu")
    with elsewhere() as device:
        found, accuracy_there = trained(convolutional, settings, device)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert accuracy_there == accuracy


STRUCTURE = np.flatnonzero((np.arange(32) - np.arange(32)[:, None]) % 8 == 0)
"""Four cyclic diagonals of (32, 32), which every kernel can compute."""


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_computes_elsewhere_what_it_computes_here(kernel: str) -> None:
    expected = products(kernel, torch.device("cpu"))
    with elsewhere() as device:
        found = [here(tensor) for tensor in products(kernel, device)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def products(kernel: str, device: torch.device) -> list[Tensor]:
    """Outputs of a layer, and the gradients of what it reads, of its weight and of its bias."""
    torch.manual_seed(0)
    layer = sparse_layer(nn.Linear(32, 32)).to(device)
    positions, weight = torch.from_numpy(STRUCTURE).to(device), layer.weight.detach().reshape(-1)
    values = weight.index_select(0, positions)
    compressed = KERNELS[kernel].storage == "compressed"
    held = values if compressed else torch.zeros_like(weight).index_copy_(0, positions, values).reshape(32, 32)
    layer.restructure((32, 32), STRUCTURE, kernel, nn.Parameter(held))
    x = torch.randn(8, 32).to(device).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert layer.bias is not None
    gradients = [tensor.grad for tensor in (x, layer.weight, layer.bias) if tensor.grad is not None]
    return [y.detach(), *gradients]
