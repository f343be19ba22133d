"""Copies of one tensor on several ranks: compared where they lie, since what is gathered is one rank's copy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hardware.shard import Held, Shard


def copies(shard: Shard, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A rank's own parameters, buffers and optimizer state in whole tensors, NaN where it holds nothing. Nothing is exchanged."""
    found = {}
    for name, tensor in {**dict(shard.module.named_parameters()), **dict(shard.module.named_buffers())}.items():
        if name in shard.held:
            found[name] = _spread(shard.held[name], tensor)
    for name, parameter in shard.module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                found[f"{name} {key}"] = _spread(shard.held[name], value)
    return found


def _spread(held: Held, local: Tensor) -> Tensor:
    whole = torch.full(held.shape, torch.nan, dtype=torch.float64)
    replace(held, owned=True).put(local.double().cpu(), whole)
    return whole


def check_replicas(ranks: Sequence[Mapping[str, Tensor]], what: str) -> int:
    """Bit for bit the same wherever two ranks hold the same element. How many elements more than one rank holds."""
    shared = 0
    for name in {name for found in ranks for name in found}:
        held = torch.stack([found[name] for found in ranks if name in found])  # (ranks, ...)
        lowest, highest = held.nan_to_num(nan=torch.inf).amin(0), held.nan_to_num(nan=-torch.inf).amax(0)
        several = (~held.isnan()).sum(0) > 1
        assert bool((lowest == highest)[several].all()), f"{what}: ranks hold different copies of {name}"
        shared += int(several.sum())
    return shared
