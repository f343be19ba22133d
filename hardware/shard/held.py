"""Which elements of a whole tensor one rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from grow.axes import IntArray


@dataclass(frozen=True, eq=False)
class Held:
    """Which elements of the whole tensor ``name`` a local one holds.

    ``positions`` is shaped like the local tensor, -1 where nothing is held; None when it holds the whole.
    """

    name: str
    shape: tuple[int, ...]
    positions: IntArray | None
    owned: bool  # False where another rank answers for a copy

    def put(self, local: Tensor, whole: Tensor) -> None:
        """Write what is held into the whole tensor, if this rank answers for it."""
        if self.owned:
            flat, kept = self._flat(local.device)
            whole.view(-1)[flat[kept]] = local.detach().reshape(-1)[kept]

    def take(self, whole: Tensor) -> Tensor:
        """What is held of the whole tensor, zero where nothing is; a new tensor."""
        flat, kept = self._flat(whole.device)
        chosen = whole.detach().reshape(-1)[flat.clamp(min=0)]
        chosen = torch.where(kept, chosen, torch.zeros_like(chosen))
        return chosen.reshape(self.shape if self.positions is None else self.positions.shape).clone()

    def _flat(self, device: torch.device) -> tuple[Tensor, Tensor]:
        flat = torch.arange(prod(self.shape)) if self.positions is None else torch.from_numpy(self.positions.reshape(-1))
        flat = flat.to(device)
        return flat, flat >= 0
