"""What crosses between a process and the ranks that it starts: JSON and tensors. Nothing is pickled.

    length of the JSON, 8 bytes | JSON | tensors, as safetensors: nothing where there are none

A JSON object stands for what JSON has not: its one key says what it is. Functions and records (dataclasses) are named by the module
and the name under which they are defined. The reader takes none from a package that it was not told to trust, and none that a module has
only imported: no name leads to what another library can do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import isfunction, ismethod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("grow", "hardware", "search", "studies")
"""Those whose functions and records may be named."""

_SIZE_BYTES = 8


def pack(value: object, packages: set[str] | None = None) -> bytes:
    """A value as bytes. ValueError for what cannot be sent.

    It may be made of None, numbers, texts, lists, tuples, mappings, tensors, arrays, dataclasses, functions at the top of a module, and
    methods of dataclasses. Tensors arrive row-major, on the CPU and without a gradient. The packages that it names are added to
    ``packages``.
    """
    packing = _Packing(set() if packages is None else packages)
    text = json.dumps(packing.plain(value)).encode()
    return len(text).to_bytes(_SIZE_BYTES, "big") + text + _saved(packing.tensors)


def unpack(data: bytes | bytearray, packages: Collection[str] = PACKAGES) -> Any:
    """The value that was packed. ValueError where it names what is in none of the ``packages``."""
    begin = _SIZE_BYTES + int.from_bytes(data[:_SIZE_BYTES], "big")
    return _valued(json.loads(data[_SIZE_BYTES:begin]), _loaded(bytes(data[begin:])), packages)


def name_of(named: Callable[..., object]) -> str:
    """``module:name`` of a function or a class. ValueError unless it is found under that name."""
    name = f"{named.__module__}:{named.__qualname__}"
    if named.__module__ == "__main__" or "<" in named.__qualname__:
        raise ValueError(f"{name} is to be named, but must be importable by name; move it to the top of a module")
    return name


def found(name: str, packages: Collection[str] = PACKAGES) -> Any:
    """The function or class of that name. ValueError unless it is defined there, in one of the ``packages``."""
    module, _, qualified = name.partition(":")
    if module.partition(".")[0] not in packages:
        raise ValueError(f"{name} is named, but must be in one of the packages {', '.join(sorted(packages))}; nothing else is called")
    value: Any = import_module(module)
    for part in qualified.split("."):
        value = getattr(value, part, None)
    if not (isfunction(value) or isinstance(value, type)) or name_of(value) != name:
        raise ValueError(f"{name} is named, but must be a function or a class that is defined there; nothing else is called")
    return value


class _Packing:
    """Turns a value into JSON, and keeps apart what JSON has not."""

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages
        self.tensors: list[Tensor] = []

    def plain(self, value: object) -> object:
        """JSON for a value."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if type(value) is list:
            return [self.plain(entry) for entry in value]
        if type(value) is tuple:
            return {"tuple": [self.plain(entry) for entry in value]}
        if isinstance(value, Mapping):
            return {"mapping": [[self.plain(key), self.plain(entry)] for key, entry in value.items()]}
        if is_dataclass(value) and not isinstance(value, type):
            held = {field.name: self.plain(getattr(value, field.name)) for field in fields(value) if field.init}
            return {"record": [self._named(type(value)), held]}
        if isfunction(value):
            return {"function": self._named(value)}
        if ismethod(value) and is_dataclass(value.__self__):
            return {"method": [self.plain(value.__self__), value.__name__]}
        return self._numbers(value)

    def _named(self, named: Callable[..., object]) -> str:
        self.packages.add(named.__module__.partition(".")[0])
        return name_of(named)

    def _numbers(self, value: object) -> object:
        import torch  # the parent of ranks may do without

        array = isinstance(value, np.ndarray)
        tensor = torch.from_numpy(value) if array else value
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"{value!r:.80} is a {type(value).__name__}, but must be JSON, a tensor, an array, a dataclass or a function;"
                " send what it can be made from"
            )
        self.tensors.append(tensor)
        return {"array" if array else "tensor": len(self.tensors) - 1}


def _valued(plain: object, tensors: Sequence[Tensor], packages: Collection[str]) -> Any:
    """The value that JSON stands for."""
    if isinstance(plain, list):
        return [_valued(entry, tensors, packages) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, held),) = plain.items()
    match kind:
        case "tuple":
            return tuple(_valued(entry, tensors, packages) for entry in held)
        case "mapping":
            return {_valued(key, tensors, packages): _valued(entry, tensors, packages) for key, entry in held}
        case "tensor":
            return tensors[held]
        case "array":
            return tensors[held].numpy()
        case "function":
            return _function(held, packages)
        case "method":
            owner = _valued(held[0], tensors, packages)
            return getattr(owner, _function(f"{name_of(type(owner))}.{held[1]}", packages).__name__)
        case "record":
            return _record(held[0], packages)(**{name: _valued(entry, tensors, packages) for name, entry in held[1].items()})
    raise ValueError(f"{kind!r} is a kind of value, but must be one that is sent; both ends must be of one version")


def _function(name: str, packages: Collection[str]) -> Callable[..., Any]:
    value = found(name, packages)
    if not isfunction(value):
        raise ValueError(f"{name} is named, but must be a function")
    return value


def _record(name: str, packages: Collection[str]) -> Callable[..., Any]:
    value = found(name, packages)
    if not is_dataclass(value):
        raise ValueError(f"{name} is named, but must be a dataclass")
    return value  # type: ignore[return-value]


def _saved(tensors: Sequence[Tensor]) -> bytes:
    if not tensors:
        return b""
    from safetensors.torch import save

    # copies, since safetensors refuses tensors that share memory
    return save({str(place): tensor.detach().cpu().contiguous().clone() for place, tensor in enumerate(tensors)})


def _loaded(data: bytes) -> list[Tensor]:
    if not data:
        return []
    from safetensors.torch import load

    tensors = load(data)
    return [tensors[str(place)] for place in range(len(tensors))]
