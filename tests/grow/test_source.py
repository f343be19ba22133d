"""Networks written down as source: they compute the same and need nothing but torch."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from grow.export import plain
from grow.network import Network
from grow.source import WEIGHTS, call, source, stored_tensors
from tests.contracts.modules import NETWORKS, Sample
from tests.grow.test_network import outputs, some

CHAINS = ("vgg11", "alexnet")
"""Long chains of what the others consist of as well."""


def written(network: Network, folder: Path) -> Path:
    module = plain(network.eval())
    save_file(stored_tensors(network, module), folder / WEIGHTS)
    (folder / "network.py").write_text(source(module, "A network.", "Its layers."))
    return folder / "network.py"


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "sample", [pytest.param(sample, id=name, marks=[pytest.mark.slow] * (name in CHAINS)) for name, sample in NETWORKS.items()]
)
def test_the_source_of_every_network_computes_what_the_network_computes(sample: Sample, tmp_path: Path) -> None:
    network, x = sample.network(), sample.inputs()
    network.prune_connections(some(network, 0.6))
    path = written(network, tmp_path)
    assert "grow" not in path.read_text()
    loaded = imported(path).load()
    assert not loaded.training
    torch.testing.assert_close(loaded(x), outputs(network, x), rtol=1e-9, atol=1e-9)


def mlp() -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5)), torch.zeros(1, 40))


def pruned() -> Network:
    network, generator = mlp(), np.random.default_rng(0)
    for name, share in (("0", 0.9), ("2", 0.9), ("4", 0.3)):
        possible = network.topology.layer(name).possible
        network.prune_connections({name: np.sort(generator.choice(possible, round(share * possible), replace=False))})
    return network


def test_weights_are_stored_by_position_exactly_where_that_is_smaller(tmp_path: Path) -> None:
    """Of float32, below a density of one half: four bytes of a value, four of its position."""
    network = pruned()
    written(network, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert {"0.weight.values", "0.weight.positions", "2.weight.values", "4.weight"} <= stored.keys()
    assert "0.weight" not in stored
    assert stored["0.weight.positions"].dtype == torch.int32
    assert stored["0.weight.positions"].tolist() == network.topology.layer("0").positions().tolist()
    assert (tmp_path / WEIGHTS).stat().st_size < 0.3 * sum(4 * tensor.numel() for tensor in plain(network).state_dict().values())


def test_sparse_weights_where_asked_compute_the_same_and_are_csr(tmp_path: Path) -> None:
    network, x = pruned(), torch.randn(7, 40)
    found = imported(written(network, tmp_path)).load(sparse=True)
    assert found.get_submodule("0").weight.layout == torch.sparse_csr
    assert found.get_submodule("4").weight.layout == torch.strided  # dense is smaller
    torch.testing.assert_close(found(x), outputs(network, x), rtol=1e-6, atol=1e-6)


def test_the_source_runs_and_trains_where_this_package_cannot_be_imported(tmp_path: Path) -> None:
    network, x = pruned(), torch.randn(7, 40)
    written(network, tmp_path)
    save_file({"x": x, "y": outputs(network, x)}, tmp_path / "expected.safetensors")
    code = """
import sys
for name in ("grow", "hardware", "search", "studies"):
    sys.modules[name] = None
import torch
from safetensors.torch import load_file
from network import load
given, network = load_file("expected.safetensors"), load()
assert (network(given["x"]) - given["y"]).abs().max() < 1e-6
network.train()(given["x"]).sum().backward()
assert all(parameter.grad is not None for parameter in network.parameters())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_arguments_that_are_defaults_are_left_out_and_others_kept() -> None:
    assert call("a", nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)) == (
        "nn.Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=3, bias=False)"
    )
    assert call("a", nn.BatchNorm2d(4)) == "nn.BatchNorm2d(4)"
    assert call("a", nn.GELU(approximate="tanh")) == "nn.GELU(approximate='tanh')"


def test_a_layer_of_a_strangers_is_named() -> None:
    class Linear(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"layer 'a\.b' is of type Linear, but must be one of torch's"):
        call("a.b", Linear(2, 3))
