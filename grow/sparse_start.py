"""A network that is never dense: the structure of a seed on a module without memory, and values for the connections that it has.

Legend: E connections of a layer, O / I target and source entries of a weight (O, I, *kernel).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from grow.editing.connected import Index
from grow.editing.restoring import shape_with
from grow.kernels import KERNELS
from grow.layers import SparseLayer
from grow.network import Network
from grow.seeds import seed


def sparse_network(
    module: nn.Module,
    example: Tensor,
    density: float,
    draw: int = 0,
    initial: str = "erdos_renyi",
    kernel: str = "csr",
    device: str = "cpu",
    kept: frozenset[str] = frozenset(),
) -> Network:
    """A network of a density, drawn from ``draw``; its memory goes by its connections, from the first moment on.

    ``module`` is built under ``torch.device("meta")``, so that it has shapes but no values; ``example`` is one input (1, ...).
    ``initial`` is a name of `grow.seeds.SEEDS`, ``kept`` names layers that have all their connections. Weights are drawn as torch
    draws those of a layer with the live fan-in, uniform in +-1 / sqrt(fan-in), biases uniform in +-1 / sqrt(I prod(kernel)); norms
    start as the identity, embeddings normal. ValueError for a module that holds values, and for tensors that nothing tells how to draw.

    >>> with torch.device("meta"):
    ...     module = nn.Sequential(nn.Linear(3000, 3000), nn.ReLU(), nn.Linear(3000, 10))
    >>> network = sparse_network(module, torch.zeros(1, 3000), density=0.001)
    >>> network.topology.connections, sum(p.numel() for p in network.parameters())
    (9030, 12040)
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_meta:
            raise ValueError(f"tensor {name!r} is on {tensor.device}, but must be on meta; build the module under torch.device('meta')")
    if kernel not in KERNELS or KERNELS[kernel].storage != "compressed":
        names = ", ".join(name for name, found in KERNELS.items() if found.storage == "compressed")
        raise ValueError(f"kernel is {kernel!r}, but must store connections alone: {names}")
    network = Network(module, example)
    structure = seed(initial)(network.topology, density, np.random.default_rng(draw), excluded=kept)
    units = {space.name: structure.units.get(space.name, space.units) for space in network.topology.spaces}
    shapes = {layer.layer: layer.sized(units) for layer in network.topology.layers}
    generator = torch.Generator().manual_seed(draw)
    tensors = {
        name: _drawn(network, name, shapes, structure.index, units, generator).to(device, tensor.dtype)
        for name, tensor in network.tensors().items()
    }
    kernels = {name: "dense" if structure.index[name] is None else kernel for name in shapes}
    network.restore(units, structure.index, kernels, tensors, None)
    return network


def _drawn(
    network: Network,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    index: Mapping[str, Index],
    units: Mapping[str, int],
    generator: torch.Generator,
) -> Tensor:
    """Values of one tensor at the start."""
    path, _, leaf = name.rpartition(".")
    owner = network.module.get_submodule(path)
    if isinstance(owner, SparseLayer):
        shape, positions = shapes[path], index[path]
        width = max(1, prod(shape[1:]))
        if leaf == "bias":
            return _uniform((shape[0],), generator) / sqrt(width)
        if positions is None:
            return _uniform(shape, generator) / sqrt(width)
        rows = torch.from_numpy(positions // width)
        fan_in = torch.bincount(rows, minlength=shape[0])
        return _uniform((len(positions),), generator) / fan_in[rows].sqrt()
    shape = shape_with(network, name, tuple(network.tensors()[name].shape), units)
    if isinstance(owner, nn.Embedding):
        return torch.randn(shape, generator=generator)
    if isinstance(owner, nn.PReLU):
        return torch.full(shape, owner.init)
    if any(other.rpartition(".")[0] == path for other in network.fills) or not shape:
        return torch.full(shape, network.fills.get(name, 0.0))
    raise ValueError(
        f"tensor {name!r} is on meta, but must belong to a layer, a norm or an embedding, which tell how it is drawn; use Network"
    )


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in (-1, 1)."""
    return torch.rand(shape, generator=generator) * 2 - 1
