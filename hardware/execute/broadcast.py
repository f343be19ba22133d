"""What rank 0 tells the others at an edit: a decision as JSON, and a checkpoint, tensor by tensor. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from grow.checkpoint import Checkpoint
from hardware.execute.exchange import Peers

JsonObject = dict[str, Any]


def broadcast_json(told: JsonObject | None, peers: Peers, device: torch.device) -> JsonObject:
    """Rank 0's object, on every rank; the others pass None."""
    if peers.count == 1:
        assert told is not None
        return told
    text = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor(len(text), device=device)
    distributed.broadcast(size, group=peers.group, group_src=0)
    text = text if peers.rank == 0 else text.new_empty(int(size))
    distributed.broadcast(text, group=peers.group, group_src=0)
    found: JsonObject = json.loads(bytes(text.cpu().numpy()))
    return found


def broadcast_tensors(told: Mapping[str, Tensor] | None, peers: Peers, device: torch.device) -> dict[str, Tensor]:
    """Rank 0's tensors by name, on every rank, bit for bit, on the CPU unless they are rank 0's own; the others pass None."""
    if peers.count == 1:
        assert told is not None
        return dict(told)
    mine = [] if told is None else [[name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in told.items()]
    listed = broadcast_json({"tensors": mine}, peers, device)["tensors"]
    found: dict[str, Tensor] = {}
    for name, dtype, shape in listed:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype)) if told is None else told[name].detach().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).to(device)  # of every type, bool too, bytes can be sent
        if content.numel():
            distributed.broadcast(content, group=peers.group, group_src=0)
        found[name] = tensor if told is not None else content.cpu().view(tensor.dtype).reshape(shape)
    return found


def broadcast_checkpoint(told: Checkpoint | None, peers: Peers, device: torch.device) -> Checkpoint:
    """Rank 0's checkpoint on every rank, bit for bit; the others pass None."""
    meta = broadcast_json(None if told is None else dict(told.meta), peers, device)
    return Checkpoint(meta, broadcast_tensors(None if told is None else told.tensors, peers, device))
