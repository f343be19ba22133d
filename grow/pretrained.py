"""A trained model as the seed: a file of tensors -> a module's parameters and buffers, and its exact zeros -> absent connections.

Two formats are read, told apart by their first bytes: safetensors, and what ``torch.save(model.state_dict(), path)`` writes. The
second is a pickle and is unpickled with ``weights_only=True``: whatever else than tensors and plain containers it asks for is
refused, since a pickled module runs the code of whoever made the file.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from grow.axes import IntArray
from grow.network import Network

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

SHOWN = 5
"""Names that an error lists at most."""


class WeightsError(ValueError):
    """A file that holds no weights, or those of another model."""


def load_into(module: nn.Module, path: Path, sha256: str | None = None) -> str:
    """Fill a module with the tensors of a file, whole or not at all. Returns the file's sha256; another than asked for is an error.

    The names must be those of ``module.state_dict()``, all of them and no others, with the same shapes; a wrapper's prefix
    (`WRAPPER_PREFIXES`) and one enclosing ``{"state_dict": ...}`` are taken off. Values are converted to the module's dtypes.
    WeightsError says what does not fit.
    """
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise WeightsError(f"weights {path} has sha256 {found}, but must have {sha256}; restore the file or start anew with this one")
    tensors = _unwrapped(_tensors(data, path))
    _check_fits(module.state_dict(), tensors, path)
    module.load_state_dict(tensors)
    return found


def existing_sparsity(network: Network) -> dict[str, IntArray | None]:
    """For every layer the sorted flat positions of the weights that are not exactly zero; None when none is.

    What `Network.set_connections` takes: a model that another tool pruned with masks starts with the connections it has left.
    WeightsError if a layer would lose them all.
    """
    index: dict[str, IntArray | None] = {}
    for path, layer in network.layers.items():
        alive = np.flatnonzero(layer.dense_weight().cpu().numpy().reshape(-1))
        if not len(alive):
            raise WeightsError(f"weights of layer {path!r} are all zero, but must not be; load the model without recognising its sparsity")
        index[path] = None if len(alive) == layer.dense_weight().numel() else alive
    return index


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"weights is {str(path)!r}, but must be a file that can be read ({error.strerror}); pass a state dict's path"
        ) from error


def _tensors(data: bytes, path: Path) -> Mapping[str, object]:
    """The mapping that a file holds. A safetensors file begins with its header's length (8 bytes) and the header, JSON."""
    try:
        if data[8:9] == b"{":
            return load_safetensors(data)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # what is not understood is refused below
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights {path} is a pickle of more than tensors, but must be a state dict: loading anything else may run code that"
            f" the file brings along; save model.state_dict() where the model is trusted ({_first_line(error)})"
        ) from error
    except Exception as error:  # a damaged file surfaces as whatever the reader stumbles over, struct.error and KeyError among it
        raise WeightsError(
            f"weights {path} is damaged or of another format, but must be safetensors or a torch state dict; save it again"
            f" ({_first_line(error)})"
        ) from error
    if not isinstance(found, Mapping):
        raise WeightsError(f"weights {path} holds a {type(found).__name__}, but must hold a mapping of names to tensors; save a state dict")
    return {str(name): value for name, value in found.items()}


def _unwrapped(found: Mapping[str, object]) -> Mapping[str, object]:
    inner = found.get("state_dict")
    tensors = inner if isinstance(inner, Mapping) else found
    for prefix in WRAPPER_PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _check_fits(expected: Mapping[str, Tensor], found: Mapping[str, object], path: Path) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        both = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(unexpected)} too much"] * bool(unexpected)
        raise WeightsError(f"weights {path} {' and '.join(both)}, but must have the model's names; pass the weights of this very model")
    for name, tensor in expected.items():
        value = found[name]
        if not isinstance(value, Tensor):
            raise WeightsError(f"{name} in weights {path} is a {type(value).__name__}, but must be a tensor; save a state dict")
        if value.shape != tensor.shape:
            raise WeightsError(
                f"{name} in weights {path} has shape {tuple(value.shape)}, but must have {tuple(tensor.shape)};"
                " pass the weights of this very model"
            )
        if value.is_floating_point() != tensor.is_floating_point():
            raise WeightsError(f"{name} in weights {path} is {value.dtype}, but must be {tensor.dtype}; save unquantised weights")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{name} in weights {path} holds values that are not finite, but must not; the training diverged")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
