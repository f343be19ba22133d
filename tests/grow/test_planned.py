"""An edit is carried out whole or not at all, and takes memory by the connections, whatever goes wrong on the way."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grow import optim
from grow.average import WeightAverage
from grow.editing.insertion import Insertion
from grow.editing.units import Births, Lines, Merge
from grow.kernels import KERNELS
from grow.network import Network
from tests.contracts.crossed import STORAGES, crossed, named


class OutOfMemory(TorchDispatchMode):
    """Lets the operation of that number fail. Counts them, and knows the largest result."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.fails_at, self.operations, self.largest = fails_at, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations += 1
        if self.operations == self.fails_at:
            raise MemoryError("out of memory")
        result = func(*args, **(kwargs or {}))
        self.largest = max(
            self.largest, *(part.numel() for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, Tensor)), 0
        )
        return result


def trained(kernel: str) -> tuple[Network, torch.optim.Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 4))
    network.use_kernels(lambda case: kernel, 8)
    optimizer = optim.make("adam", network.parameters(), 0.01, 0.9, 0.0)
    network.attach(optimizer)
    average = WeightAverage(network, 0.9)
    network.attach(average)
    network.prune_connections({"0": np.arange(0, 12, 2), "2": np.arange(3, 18, 3)})
    network.assign({"0": np.arange(5) % 2, "2": np.arange(4) % 2})
    network(torch.ones(3, 4)).square().mean().backward()
    optimizer.step()
    average.update()
    return network, optimizer


def all_bytes(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Everything that a network, its optimizer and its followers consist of, and which objects they are."""
    found: dict[str, object] = {
        "code": network.module.code,
        "groups": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
    }
    for name, tensor in network.module.state_dict(keep_vars=True).items():
        found[name] = (id(tensor), tuple(tensor.shape), tensor.detach().numpy().tobytes())
    for name, parameter in network.module.named_parameters():
        found[f"{name} grad"] = None if parameter.grad is None else parameter.grad.numpy().tobytes()
        found[f"{name} state"] = {key: value.numpy().tobytes() for key, value in optimizer.state[parameter].items()}
    for number, follower in enumerate(network.followers):
        found[f"follower {number}"] = {name: tensor.numpy().tobytes() for name, tensor in follower.tensors.items()}
    found["layers"] = {path: (layer.weight_shape, layer.kernel, id(layer.mask)) for path, layer in network.layers.items()}
    found["topology"] = [(layer.shape, None if layer.index is None else layer.index.tobytes()) for layer in network.topology.layers]
    found["parts"] = {space: parts.tobytes() for space, parts in (network.parts or {}).items()}
    return found


EDITS: Mapping[str, Callable[[Network], object]] = {
    "prune": lambda n: n.prune_connections({"2": np.array([0, 1])}),
    "grow": lambda n: n.grow_connections({"2": np.array([3, 6])}, {"2": torch.tensor([0.5, 0.25])}),
    "set": lambda n: n.set_connections({"2": np.array([5, 8])}),
    "remove": lambda n: n.remove_units("0", [1]),
    "add": lambda n: n.add_units("0", 2, torch.Generator(), 2, 2),
    "split": lambda n: n.split_units("0", [1], torch.Generator()),
    "merge": lambda n: n.merge_units("0", [Merge(1, {2: 0.5}, {"2": 0.1})]),
    "birth": lambda n: n.insert_units("0", Births(1, {"0": Lines(torch.ones(1, 4))}, {"2": Lines(torch.ones(4, 1))})),
    "insert identity": lambda n: n.insert_layer(Insertion("0", "new", "identity")),
    "insert residual": lambda n: n.insert_layer(Insertion("0", "new", "residual", units=2, fan_in=2, fan_out=2)),
    "kernels": lambda n: n.use_kernels(lambda case: next(kernel for kernel in KERNELS if kernel != n.layers["0"].kernel), 8),
}


@pytest.mark.parametrize(("kernel", "edit"), crossed(named(KERNELS), named(EDITS), STORAGES))
def test_an_edit_that_runs_out_of_memory_changes_not_a_byte(edit: str, kernel: str) -> None:
    other, _ = trained(kernel)
    with OutOfMemory() as whole:
        EDITS[edit](other)
    network, optimizer = trained(kernel)
    before = all_bytes(network, optimizer)
    for fails_at in range(1, whole.operations + 1):
        if fails_at % 9 and fails_at < whole.operations - 15:  # planning is long, and what follows it is what could be left half done
            continue
        with pytest.raises(MemoryError), OutOfMemory(fails_at):
            EDITS[edit](network)
        assert all_bytes(network, optimizer) == before, f"operation {fails_at} of {whole.operations}"
    EDITS[edit](network)
    assert all_bytes(network, optimizer) != before


def test_a_record_that_refuses_an_edit_leaves_the_network() -> None:
    class Refuses:
        def edited(self, before: object, after: object, moves: object) -> None:
            raise ValueError("no")

    network, optimizer = trained("dense")
    network.remember(Refuses())
    before = all_bytes(network, optimizer)
    with pytest.raises(ValueError, match="no"):
        network.remove_units("0", [1])
    assert all_bytes(network, optimizer) == before


@pytest.mark.parametrize("edit", ["prune", "grow", "remove", "add", "merge"])
def test_edits_of_a_compressed_layer_hold_nothing_of_the_size_of_the_dense_weight(edit: str) -> None:
    network = Network(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 6))
    network.use_kernels(lambda case: "csr", 8)
    network.set_connections({"0": np.arange(0, 48, 4), "2": np.arange(0, 64, 5), "4": np.arange(0, 16, 2)})
    for space in ("0", "2"):
        network.add_units(space, 392, torch.Generator().manual_seed(0), 2, 2)
    optimizer = optim.make("adam", network.parameters(), 0.01, 0.9, 0.0)
    network.attach(optimizer)
    network(torch.ones(3, 6)).square().mean().backward()
    optimizer.step()
    change: Mapping[str, Callable[[], None]] = {
        "prune": lambda: network.prune_connections({"2": network.topology.layer("2").positions()[:5]}),
        "grow": lambda: network.grow_connections({"2": np.setdiff1d(np.arange(30), network.topology.layer("2").positions())}),
        "remove": lambda: network.remove_units("0", range(10, 20)),
        "add": lambda: network.add_units("0", 5, torch.Generator(), 2, 2),
        "merge": lambda: network.merge_units("0", [Merge(11, {12: 0.5, 13: 0.5}), Merge(14, {12: 1.0})]),
    }
    with OutOfMemory() as watched:
        change[edit]()
    assert 0 < watched.largest < 0.05 * network.topology.layer("2").possible
