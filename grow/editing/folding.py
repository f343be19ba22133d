"""Units that lost their last path from the input are constants, and a bias can take a constant over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grow.axes import IntArray
from grow.editing.editable import Editable
from grow.editing.units import Merge
from grow.layers import SparseConv2d, SparseLinear
from grow.topology import Connections, Topology, columns_of, read_units
from grow.watch import layer_inputs


def folded(network: Editable, dead: Mapping[str, IntArray]) -> dict[str, list[Merge]]:
    """Those of the given units by space whose removal the readers' biases can make up for, as the constants that they are.

    One pass through the network tells all constants, if any is read: folding those of one space leaves the others as they are. A unit that
    no layer reads has none.
    """
    topology = network.topology
    read = {
        (space, layer.layer): np.isin(units, read_units(topology, layer, space))
        for space, units in dead.items()
        for layer in topology.consumers(space)
    }
    readers = {layer for (_, layer), which in read.items() if which.any()}
    inputs = _inputs(network, readers) if readers else {}
    found = {}
    for space, units in dead.items():
        allowed, constants = np.ones(len(units), bool), [dict[str, float]() for _ in units]
        for layer in topology.consumers(space):
            which, module = np.flatnonzero(read[space, layer.layer]), network.layers[layer.layer]
            if not len(which):
                continue
            values = _values(topology, layer, space, units[which], inputs[layer.layer])
            allowed[which] &= _exact(module, values)
            for at, value in zip(which.tolist(), values[:, 0].tolist(), strict=True):
                if module.bias is not None:
                    constants[at][layer.layer] = value
        taken = np.flatnonzero(allowed)[: topology.units[space] - 1].tolist()
        if taken:
            found[space] = [Merge(int(units[at]), {}, constants[at]) for at in taken]
    return found


def _values(topology: Topology, layer: Connections, space: str, units: IntArray, inputs: Tensor) -> Tensor:
    """Per unit: what a layer reads of it in evaluation mode, over samples, repeats and positions, (units, values)."""
    columns = torch.from_numpy(np.stack(columns_of(topology, layer, space, units))).to(inputs.device)  # (units, columns)
    features = inputs if len(layer.shape) > 2 else inputs.movedim(-1, 1)
    return features[:, columns].movedim(1, 0).flatten(1)


def _inputs(network: Editable, paths: Collection[str]) -> dict[str, Tensor]:
    """What layers read, in evaluation mode, for the example and a sample of noise."""
    example, noise = network.example.to(network.device), torch.randn(network.example.shape, generator=torch.Generator().manual_seed(0))
    if example.is_floating_point():
        example = example.to(next(network.module.parameters()).dtype)
    else:  # tokens: which numbers exist is not known, but those of the example in another order do
        noise = example.reshape(-1).flip(0).reshape(example.shape)
    return layer_inputs(network.module, {path: network.layers[path] for path in paths}, torch.cat([example, noise.to(example)]))


def _exact(layer: SparseLinear | SparseConv2d, values: Tensor) -> NDArray[np.bool_]:
    """Of which units a layer's bias can take over what their values (units, values) contribute, (units,)."""
    exact = (values == 0).all(1)
    padded = isinstance(layer, SparseConv2d) and any(layer.padding)
    if layer.bias is not None and not padded:
        exact |= (values == values[:, :1]).all(1)
    return exact.cpu().numpy()
