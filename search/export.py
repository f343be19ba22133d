"""A trial's network, taken home: a folder that needs nothing of this project.

    network.json           recipe, topology, metrics, and what the network reads
    weights.safetensors    torch, safetensors: every tensor, compressed where that is smaller
    network.py             torch: the network as source, with `load()`
    network.onnx           onnx: the network with its weights

What is written is read back and compared with the trained network before it is handed over.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grow.export import plain
from grow.source import WEIGHTS, source, stored_tensors
from search.errors import ConfigurationError, RunError
from search.files import write_json, write_text
from search.results import TrialDocument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grow.network import Network
    from search.load import LoadedRun

SCHEMA_VERSION = 1
TOLERANCE = 1e-6
"""Largest difference of an output, relative to the largest output where that is above 1: float32 has 7 digits."""
ROUNDINGS = 4
"""Where the trained network's own distance from exact outputs is so near to the tolerance that 1e-6 has no meaning in float32, another
runtime, which sums in another order, may differ by this multiple of that distance. Deep networks with large weights need it."""
SAMPLES = 4

Format: TypeAlias = Literal["torch", "safetensors", "onnx"]


def export(run: LoadedRun, number: int, form: Format, output: Path) -> list[str]:
    """Write a trial's network into the new or empty folder ``output``. Returns what was checked, in words.

    ConfigurationError where the folder holds something or a package is missing; RunError where what is read back is another network.
    """
    if form == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    trial, network = run.trial(number), run.network(number)
    example = _samples(run.example(number))
    module = plain(network.eval()).eval()
    with torch.no_grad():
        expected = network(example)
    with _written(output) as folder:
        write_json(folder / "network.json", described(run.document["run"], trial, network, module, example))
        if form == "onnx":
            return [_onnx(module, example, expected, folder / "network.onnx")]
        save_file(stored_tensors(network, module), folder / WEIGHTS)
        if form == "torch":
            title = (
                f"Trial {number} of the run {run.document['run']}, a {trial['recipe'].get('network')} trained on {run.document['study']}."
            )
            write_text(folder / "network.py", source(module, title, _in_words(trial, network)))
            return [_read_back(folder, example, expected)]
        return [f"{len(load_file(folder / WEIGHTS))} tensors"]


def described(run: str, trial: TrialDocument, network: Network, module: nn.Module, example: Tensor) -> dict[str, Any]:
    """What `network.json` holds. parts: device of every unit, None where units are not divided. stored: how each tensor is held."""
    topology, parts = network.topology, network.parts or {}
    stored = stored_tensors(network, module)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "trial": trial["number"],
        "input": {"shape": ["batch", *example.shape[1:]], "dtype": str(example.dtype).removeprefix("torch.")},
        "metrics": {name: value for name, value in trial.items() if name not in ("number", "recipe")},
        "recipe": trial["recipe"],
        "topology": {
            "density": topology.density,
            "connections": topology.connections,
            "spaces": [
                {
                    "name": space.name,
                    "units": space.units,
                    "role": space.role,
                    "parts": parts[space.name].tolist() if space.name in parts else None,
                }
                for space in topology.spaces
            ],
            "layers": [
                {
                    "name": layer.layer,
                    "shape": list(layer.shape),
                    "from": [segment.space for segment in layer.reads],
                    "to": [segment.space for segment in layer.target],
                    "connections": layer.count,
                    "density": layer.density,
                }
                for layer in topology.layers
            ],
        },
        "tensors": {
            name: {
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "stored": "dense" if name in stored else "values at flat positions, zero elsewhere",
            }
            for name, tensor in module.state_dict().items()
        },
    }


def _in_words(trial: TrialDocument, network: Network) -> str:
    topology = network.topology
    accuracy = "" if trial["accuracy"] is None else f" Validation accuracy {100 * trial['accuracy']:.2f} %."
    return f"{topology.connections:,} connections, {100 * topology.density:.2f} % of the possible ones.{accuracy}"


def _samples(example: Tensor) -> Tensor:
    """Some inputs (SAMPLES, ...) of the shape and type of an example (1, ...): drawn where they are real numbers."""
    repeated = example[:1].expand(SAMPLES, *example.shape[1:])
    if not example.is_floating_point():
        return repeated.clone()
    return repeated + torch.randn(repeated.shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype)


@contextmanager
def _written(output: Path) -> Iterator[Path]:
    """A folder beside the output, which takes its place at the end; nothing stays where writing fails."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"output is {str(output)!r}, but must be a new or empty folder; choose another with --output")
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output.exists():
            output.rmdir()
        temporary.rename(output)
    except OSError as error:
        reason = f"output is {str(output)!r}, but must be a folder that can be written to ({error.strerror}); choose another with --output"
        raise ConfigurationError(reason) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_back(folder: Path, example: Tensor, expected: Tensor) -> str:
    """Run what was written, and compare."""
    spec = importlib.util.spec_from_file_location("exported_network", folder / "network.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    with torch.no_grad():
        difference = _difference(loaded.load(folder)(example), expected)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    _check(difference, TOLERANCE, "network.py")
    return f"outputs differ from the trained network's by {difference:.1e} at most"


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def _rounding(module: nn.Module, example: Tensor, expected: Tensor) -> float:
    """The difference of outputs from those that are computed in float64."""
    with torch.no_grad():
        exact = deepcopy(module).double()(example.double() if example.is_floating_point() else example)
    return _difference(expected, exact)


def _check(difference: float, tolerance: float, what: str) -> None:
    if not difference <= tolerance:
        raise RunError(
            f"outputs of {what} differ from the trained network's by {difference:.1e}, but must within {tolerance:.0e}; report this"
        )


# ---- ONNX ----


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(f"format is onnx, but {package} is not installed; install it with: pip install 'growprune[export]'")


def _onnx(module: nn.Module, example: Tensor, expected: Tensor, path: Path) -> str:
    """Write the network with its weights, for batches of any size."""
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it speaks of packages that are of no account here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the exporter says is about itself
        batch = {0: torch.export.Dim.DYNAMIC}
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=(batch,), input_names=["input"], output_names=["output"], verbose=False
        )
        assert program is not None
        program.save(path, external_data=False)
    onnx.checker.check_model(str(path))
    difference = _difference(torch.from_numpy(onnx_outputs(path, example)), expected)
    _check(difference, max(TOLERANCE, ROUNDINGS * _rounding(module, example, expected)), "network.onnx")
    return f"outputs in onnxruntime differ from the trained network's by {difference:.1e} at most"


def onnx_outputs(path: Path, inputs: Tensor) -> Any:
    """Outputs of an ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]


def summary(folder: Path) -> Mapping[str, int]:
    """Bytes of every file of an export."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
