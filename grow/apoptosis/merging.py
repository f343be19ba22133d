"""Carrying a finding out.

Units of the input are never removed, but redundant ones need not be read. The layers that read the input get W' = W Z, with Z as in
`grow.editing.units`, and the columns of what went lose their connections (the kernel `columns` skips them).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grow.apoptosis.finding import Finding
from grow.axes import IntArray
from grow.editing.units import constant_input, merge_columns
from grow.layers import expand
from grow.network import Network
from grow.topology import columns_of


def merge(network: Network, finding: Finding) -> None:
    """Carry out a finding. Hidden units go; units of the input stay where they are, but no layer reads them any more."""
    if network.topology.space(finding.space).role == "hidden":
        network.merge_units(finding.space, finding.merges)
    elif finding.merges:
        _stop_reading(network, finding)


def _stop_reading(network: Network, finding: Finding) -> None:
    topology, space = network.topology, finding.space
    gone = np.array([merge.unit for merge in finding.merges], np.int64)
    weights, added, index = dict[str, Tensor](), dict[str, Tensor](), dict[str, IntArray]()
    for layer in topology.consumers(space):
        before = network.layers[layer.layer].dense_weight()
        after = merge_columns(before, layer, topology, space, finding.merges)
        exists = (after != 0).cpu().numpy()
        exists.reshape(-1)[layer.positions()] = True
        exists[:, np.concatenate(columns_of(topology, layer, space, gone))] = False
        weights[layer.layer], index[layer.layer] = after, np.flatnonzero(exists)
        added[layer.layer] = constant_input(before, layer, topology, space, finding.merges)
    network.set_connections(index)
    with torch.no_grad():
        for name, weight in weights.items():
            module, positions = network.layers[name], torch.from_numpy(index[name]).to(weight.device)
            values = weight.reshape(-1)[positions]
            module.weight.copy_(values if module.storage == "compressed" else expand(values, positions, module.weight_shape))
            if module.bias is not None:
                module.bias.add_(added[name])
