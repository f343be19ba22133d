"""A plain module as Python source of its own: readable, needing torch alone, and nothing of this package.

    class Network(nn.Module):
        def __init__(self): ...     # torch's own layers
        def forward(self, x): ...   # one line for each operator
    def load(): ...                 # its weights, from the file beside it

Weights come from a safetensors file that holds each of them dense, or as the positions and values of its connections where that is smaller.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from textwrap import indent

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from grow.network import Network

WEIGHTS = "weights.safetensors"

_HEAD = '''"""{title}

    from network import load
    network = load()             # with its weights, in evaluation mode; .train() trains it further
    network = load(sparse=True)  # linear layers compute with torch's CSR tensors where these are smaller: for inference

Needs torch and safetensors. The weights are read from {weights} beside this file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
{imports}

class Network(nn.Module):
    """{described}"""

    def __init__(self) -> None:
        super().__init__()
{layers}

{forward}


'''

_TAIL = '''class SparseLinear(nn.Module):
    """A linear layer whose weight (out, in) is a CSR tensor."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.weight @ x.reshape(-1, x.shape[-1]).T).T
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1)


def load(folder: str | Path = Path(__file__).parent, *, sparse: bool = False) -> Network:
    """The network with its weights. sparse: for inference, CSR weights where they are smaller than dense ones."""
    stored = load_file(Path(folder) / "{weights}")
    with torch.device("meta"):
        network = Network()
    tensors = {{}}
    for name, shape in ((name, tensor.shape) for name, tensor in network.state_dict().items()):
        if name in stored:
            tensors[name] = stored[name]
        else:  # values at flat positions, zero elsewhere
            values, positions = stored[name + ".values"], stored[name + ".positions"]
            tensors[name] = torch.zeros(shape.numel(), dtype=values.dtype).index_put((positions.long(),), values).reshape(shape)
    network.load_state_dict(tensors, assign=True)
    if sparse:
        for path, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear) and path + ".weight" not in stored:
                parent, _, leaf = path.rpartition(".")
                setattr(network.get_submodule(parent), leaf, _sparse(layer, stored[path + ".weight.positions"]))
    return network.eval()


def _sparse(layer: nn.Linear, positions: Tensor) -> SparseLinear:
    rows = torch.bincount(positions.long() // layer.in_features, minlength=layer.out_features)
    offsets = torch.cat([rows.new_zeros(1), rows.cumsum(0)]).int()
    values = layer.weight.detach().reshape(-1)[positions.long()]
    columns = (positions % layer.in_features).int()
    weight = torch.sparse_csr_tensor(offsets, columns, values, layer.weight.shape, check_invariants=True)
    return SparseLinear(weight, None if layer.bias is None else layer.bias.detach())
'''


def source(module: nn.Module, title: str, described: str) -> str:
    """Source of a module that `grow.export.plain` made. ``title`` heads the file, ``described`` the class.

    ValueError names a layer or an operator that is not torch's own.
    """
    assert isinstance(module, fx.GraphModule)
    code = module.graph.python_code("self")
    forward = _readable(code.src)
    return _HEAD.format(
        title=_quotable(title),
        weights=WEIGHTS,
        described=_quotable(described),
        imports="".join(f"{line}\n" for line in _imports(code.globals, forward)),
        layers=indent("\n".join(_constructed(module)) or "pass", " " * 8),
        forward=indent(forward, " " * 4),
    ) + _TAIL.format(weights=WEIGHTS)


def stored_tensors(network: Network, module: nn.Module) -> dict[str, Tensor]:
    """What `load` reads: the tensors of ``plain(network)`` by name, ``NAME.values`` and ``NAME.positions`` where smaller."""
    found: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        layer = network.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        positions = None if layer is None else layer.positions
        if positions is not None and _compressed_is_smaller(tensor, len(positions)):
            index = positions.cpu()
            found[f"{name}.values"] = tensor.detach().cpu().reshape(-1)[index].contiguous()
            found[f"{name}.positions"] = index.to(_integer(tensor))
        else:
            found[name] = tensor.detach().cpu().contiguous().clone()
    return found


def _compressed_is_smaller(tensor: Tensor, connections: int) -> bool:
    return connections * (tensor.element_size() + _integer(tensor).itemsize) < tensor.numel() * tensor.element_size()


def _integer(tensor: Tensor) -> torch.dtype:
    """The smallest type that counts all positions."""
    return torch.int32 if tensor.numel() < 2**31 else torch.int64


# ---- forward ----


def _readable(text: str) -> str:
    """What torch.fx writes, without the lines that let go of values, and by public names."""
    lines = [re.sub(r";  [\w\s=]+ = None$", "", line) for line in text.strip().splitlines()]
    text = "\n".join(line for line in lines if line.strip())
    return re.sub(r"torch\._C\._nn\.(\w+)", lambda found: _public(found[1], found[0]), text)


def _public(name: str, full: str) -> str:
    return f"functional.{name}" if hasattr(functional, name) else full


def _imports(names: dict[str, object], forward: str) -> list[str]:
    """Imports of what the code names besides torch."""
    found = ["from torch.nn import functional"] if "functional." in forward else []
    for name, value in names.items():
        if not re.search(rf"(?<![\w.]){name}\b", forward) or name in ("torch", "fx_pytree", "pytree"):
            continue
        if name in ("inf", "nan"):
            found.append(f"from math import {name}")
            continue
        home, own = getattr(value, "__module__", None), getattr(value, "__name__", name)
        if home is None or home.partition(".")[0] not in ("torch", "math", "operator", "_operator", "builtins"):
            raise ValueError(
                f"operator is {name!r} of {home}, but must be one of torch's to be written down; export as onnx, or replace it"
            )
        found.append(f"from {home} import {own} as {name}")
    return found


# ---- layers ----


def _constructed(module: nn.Module) -> list[str]:
    """Lines that make the layers and parameters of a module, each at its path."""
    lines = []
    for path, child in module.named_modules():
        holder = _reached(path)
        inner = any(True for _ in child.children())
        if path:
            parent, _, name = path.rpartition(".")
            lines.append(_assigned(_reached(parent), name, "nn.Module()" if inner else call(path, child)))
        if inner or not path:
            lines += [_assigned(holder, name, _parameter(p)) for name, p in child.named_parameters(recurse=False)]
            for name, buffer in child.named_buffers(recurse=False):
                kept = name not in child._non_persistent_buffers_set
                lines.append(f"{holder}.register_buffer({name!r}, {_empty(buffer)}{'' if kept else ', persistent=False'})")
    return lines


def _reached(path: str) -> str:
    """How a submodule is written.

    >>> _reached("blocks.0.conv")
    "getattr(self.blocks, '0').conv"
    """
    written = "self"
    for name in path.split(".") if path else ():
        written = f"{written}.{name}" if name.isidentifier() else f"getattr({written}, {name!r})"
    return written


def _assigned(holder: str, name: str, value: str) -> str:
    return f"{holder}.{name} = {value}" if name.isidentifier() else f"setattr({holder}, {name!r}, {value})"


def _parameter(parameter: nn.Parameter) -> str:
    return f"nn.Parameter({_empty(parameter)}{'' if parameter.requires_grad else ', requires_grad=False'})"


def _empty(tensor: Tensor) -> str:
    return f"torch.empty({tuple(tensor.shape)!r}, dtype={tensor.dtype})"


def call(path: str, layer: nn.Module) -> str:
    """The call that makes a layer of torch's, without the arguments that are torch's own defaults.

    >>> call("fc", nn.Linear(3, 4))
    'nn.Linear(in_features=3, out_features=4)'
    """
    kind, written = type(layer), repr(layer)
    if not kind.__module__.startswith("torch.nn.") or getattr(nn, kind.__name__, None) is not kind:
        raise ValueError(
            f"layer {path!r} is of type {kind.__name__}, but must be one of torch's to be written down; replace it in the model"
        )
    parameters = inspect.signature(kind).parameters
    made = ast.parse(written, mode="eval").body
    assert isinstance(made, ast.Call), written
    made.keywords = [word for word in made.keywords if not _is_default(word, parameters)]
    return f"nn.{ast.unparse(made)}"


def _is_default(word: ast.keyword, parameters: Mapping[str, inspect.Parameter]) -> bool:
    assert word.arg is not None
    try:
        return word.arg in parameters and bool(ast.literal_eval(word.value) == parameters[word.arg].default)
    except ValueError:  # not a literal
        return False


def _quotable(text: str) -> str:
    return text.replace("\\", "/").replace('"""', "'''")
