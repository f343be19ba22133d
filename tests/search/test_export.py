"""A trial's network, taken home."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import search.export
from search import load_run
from search.cli.export import export as take_home
from search.errors import ConfigurationError, RunError
from search.export import TOLERANCE, export, onnx_outputs

Finished = tuple[Path, dict[str, Any], str]


def test_an_exported_network_says_what_the_trained_one_says_where_grow_is_not(
    digits: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, found, _ = digits
    take_home(str(folder), 2, output=tmp_path / "mine")
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine")
    x = torch.rand(5, *load_run(folder).example(2).shape[1:], generator=torch.Generator().manual_seed(0))
    code = f"""
import sys
for name in ("grow", "hardware", "search", "studies"):
    sys.modules[name] = None
import torch
sys.path.insert(0, "mine")
from network import load
x = torch.rand(*{tuple(x.shape)}, generator=torch.Generator().manual_seed(0))
print(*load()(x).flatten().tolist())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    expected = load_run(folder).network(2).eval()(x).detach().flatten()
    torch.testing.assert_close(torch.tensor([float(word) for word in run.stdout.split()]), expected, rtol=0, atol=TOLERANCE)

    told = json.loads((tmp_path / "mine" / "network.json").read_text())
    assert told["schema_version"] == 1
    assert told["recipe"] == found["trials"][2]["recipe"]
    assert told["metrics"]["accuracy"] == found["trials"][2]["accuracy"]
    assert told["topology"]["connections"] == found["trials"][2]["connections"]
    assert told["topology"]["connections"] == sum(layer["connections"] for layer in told["topology"]["layers"])
    assert {space["name"]: space["units"] for space in told["topology"]["spaces"]} == found["trials"][2]["units"]


def test_safetensors_hold_the_weights_and_nothing_of_a_program(digits: Finished, tmp_path: Path) -> None:
    run = load_run(digits[0])
    export(run, 3, "safetensors", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["network.json", "weights.safetensors"]
    stored, told = load_file(tmp_path / "out" / "weights.safetensors"), json.loads((tmp_path / "out" / "network.json").read_text())
    for name, layer in run.network(3).layers.items():
        entry = told["tensors"][f"{name}.weight"]
        assert entry["shape"] == list(layer.weight_shape)
        values = stored[f"{name}.weight"][layer.dense_weight() != 0] if entry["stored"] == "dense" else stored[f"{name}.weight.values"]
        assert values.sum() == pytest.approx(float(layer.dense_weight().sum()), abs=1e-4)


def test_nothing_is_written_over_and_nothing_is_left_of_what_fails(digits: Finished, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="must be a new or empty folder"):
        export(load_run(digits[0]), 2, "safetensors", tmp_path / "full")
    with pytest.raises(ConfigurationError, match="trial is 9"):
        export(load_run(digits[0]), 9, "safetensors", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("trial", [0, 2])
def test_an_onnx_file_computes_the_same_in_onnxruntime_for_any_batch(
    trial: int, digits: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(digits[0])
    (checked,) = export(run, trial, "onnx", tmp_path / "out")
    assert "onnxruntime differ" in checked
    for batch in (1, 3, 17):
        x = torch.rand(batch, *run.example(trial).shape[1:])
        expected = run.network(trial).eval()(x).detach()
        found = torch.from_numpy(onnx_outputs(tmp_path / "out" / "network.onnx", x))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))
    exact = onnx_outputs
    monkeypatch.setattr(search.export, "onnx_outputs", lambda path, x: exact(path, x) * (1 + 5e-6))
    with pytest.raises(RunError, match=r"network\.onnx differ .* must within 1e-06"):
        export(run, trial, "onnx", tmp_path / "off")
    assert not (tmp_path / "off").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_network_leaves_as_onnx_only_where_that_can_be_checked(
    package: str, digits: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more))
    with pytest.raises(ConfigurationError, match=f"{package} is not installed; install it with: pip install 'growprune.export.'"):
        export(load_run(digits[0]), 2, "onnx", tmp_path / "out")
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert package in {re.split("[<>=]", wanted)[0] for wanted in extras["export"]}
