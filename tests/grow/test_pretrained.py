"""Trained models as seeds: what is read, what is refused."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from grow.network import Network
from grow.pretrained import WeightsError, existing_sparsity, load_into


def model(draw: int = 0) -> nn.Sequential:
    torch.manual_seed(draw)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def saved(module: nn.Module, path: Path, how: str) -> Path:
    state = module.state_dict()
    match how:
        case "safetensors":
            save_file(state, path)
        case "torch":
            torch.save(state, path)
        case "torch, old format":
            torch.save(state, path, _use_new_zipfile_serialization=False)
        case "training checkpoint":
            torch.save({"epoch": 3, "state_dict": state}, path)
        case "data parallel":
            torch.save({f"module.{name}": value for name, value in state.items()}, path)
    return path


@pytest.mark.parametrize("how", ["safetensors", "torch", "torch, old format", "training checkpoint", "data parallel"])
def test_a_file_of_any_name_brings_its_tensors_and_tells_its_hash(tmp_path: Path, how: str) -> None:
    trained, fresh = model(1), model(2)
    path = saved(trained, tmp_path / "weights.bin", how)
    found = load_into(fresh, path)
    assert same(trained, fresh)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_into(fresh, path, found) == found


def test_another_file_than_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    path, fresh = saved(model(1), tmp_path / "a.pt", "torch"), model(2)
    with pytest.raises(WeightsError, match=r"has sha256 .*, but must have 00; restore the file"):
        load_into(fresh, path, "00")
    assert same(fresh, model(2))


class Hostile:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("format", ["zip", "old", "plain pickle", "inside a state dict"])
def test_a_hostile_pickle_is_refused_and_never_runs(tmp_path: Path, format: str) -> None:
    path, harm, fresh = tmp_path / "model.pt", tmp_path / "harm", model()
    match format:
        case "zip":
            torch.save(Hostile(harm), path)
        case "old":
            torch.save(Hostile(harm), path, _use_new_zipfile_serialization=False)
        case "plain pickle":
            path.write_bytes(pickle.dumps(Hostile(harm)))
        case _:
            torch.save({**fresh.state_dict(), "extra": Hostile(harm)}, path)
    with pytest.raises(WeightsError, match="a pickle of more than tensors, but must be a state dict: loading anything else may run code"):
        load_into(fresh, path)
    assert not harm.exists()
    assert same(fresh, model())


def test_the_hostile_pickle_would_have_run(tmp_path: Path) -> None:
    """So that the test above can fail."""
    torch.save(Hostile(tmp_path / "harm"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "harm").exists()


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"save model.state_dict\(\) where the model is trusted"):
        load_into(model(), tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("4.bias"), r"lacks 4\.bias, but must have the model's names"),
        (lambda state: state.update(head=torch.ones(2)), r"has head too much, but must have the model's names"),
        (
            lambda state: state.update({"4.weight": torch.ones(3, 35)}),
            r"4\.weight in weights .* has shape \(3, 35\), but must have \(3, 36\)",
        ),
        (
            lambda state: state.update({"4.bias": torch.tensor([0, 1, 2])}),
            r"4\.bias in weights .* is torch.int64, but must be torch.float32",
        ),
        (lambda state: state.update({"4.bias": torch.tensor([0, 1, float("nan")])}), r"4\.bias .* holds values that are not finite"),
        (lambda state: state.update({"4.bias": [0.0, 1.0, 2.0]}), r"4\.bias .* is a list, but must be a tensor"),
    ],
)
def test_weights_of_another_model_are_refused_whole(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    state, fresh = dict(model(1).state_dict()), model(2)
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=message):
        load_into(fresh, tmp_path / "weights.pt")
    assert same(fresh, model(2)), "nothing is loaded in part"


@pytest.mark.parametrize("how", ["safetensors", "torch"])
@pytest.mark.parametrize("kept", [0, 4, 20, 200, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, how: str, kept: int) -> None:
    path = saved(model(1), tmp_path / "weights", how)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"weights .* but must be"):
        load_into(model(), path)


def test_what_is_no_mapping_and_what_does_not_exist_are_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(WeightsError, match="holds a Tensor, but must hold a mapping of names to tensors"):
        load_into(model(), tmp_path / "tensor.pt")
    with pytest.raises(WeightsError, match="must be a file that can be read"):
        load_into(model(), tmp_path / "absent.pt")


def test_exact_zeros_of_a_trained_model_are_absent_connections() -> None:
    pruned = model()
    with torch.no_grad():
        pruned[4].weight[:, 1:] = 0  # type: ignore[index]  # (3, 36): each class reads one entry
    network = Network(pruned, torch.zeros(1, 1, 5, 5))
    index = existing_sparsity(network)
    assert index["0"] is None
    assert index["4"] is not None
    assert index["4"].tolist() == [0, 36, 72]
    before = network(torch.ones(2, 1, 5, 5))
    network.set_connections(index)
    assert torch.equal(network(torch.ones(2, 1, 5, 5)), before)
    assert [layer.count for layer in network.topology.layers] == [36, 3]


def test_a_layer_of_zeros_is_an_error() -> None:
    empty = model()
    nn.init.zeros_(empty[4].weight)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="weights of layer '4' are all zero"):
        existing_sparsity(Network(empty, torch.zeros(1, 1, 5, 5)))


def test_a_tiny_weight_is_a_connection() -> None:
    """A weight that is tiny is a connection; only zero is none."""
    tiny = model()
    nn.init.constant_(tiny[4].weight, 1e-45)  # type: ignore[arg-type]
    assert existing_sparsity(Network(tiny, torch.zeros(1, 1, 5, 5)))["4"] is None
    assert np.float32(1e-45) != 0
