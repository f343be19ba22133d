"""Watching what the layers of a network read, without leaving a trace.

Legend: B samples, I source entries, N values of a unit over samples, positions and repeats, U units, S columns of a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from grow.topology import Connections, Topology, columns_of


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Calls go to the module itself: one that is compiled passes over hooks that came later."""
    compiled, module._compiled_call_impl = module._compiled_call_impl, None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, not compiled; afterwards every training flag is as before."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with uncompiled(module):
            yield
    finally:
        for child, training in modes:
            child.training = training


@torch.no_grad()
def layer_inputs(module: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, Tensor]:
    """What the given layers read in evaluation mode when the module reads ``inputs`` (B, ...)."""
    seen: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = arguments[0].detach().clone()  # what follows may change it in place

        return layer.register_forward_pre_hook(hook)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        with evaluating(module):
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def unit_values(topology: Topology, layer: Connections, space: str, x: Tensor) -> Tensor:
    """Values (N, U) of a space's units in what a layer reads: (B, ..., I) or a feature map (B, I, H, W)."""
    columns = torch.from_numpy(np.stack(columns_of(topology, layer, space, np.arange(topology.units[space])))).to(x.device)  # (U, S)
    rows = x.movedim(1, -1) if len(layer.shape) > 2 else x
    if columns.shape[1] == 1 and bool((columns[:, 0] == torch.arange(rows.shape[-1], device=x.device)[: len(columns)]).all()):
        return rows.reshape(-1, rows.shape[-1])[:, : len(columns)]
    return rows.reshape(-1, rows.shape[-1])[:, columns].transpose(1, 2).reshape(-1, len(columns))
