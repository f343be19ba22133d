"""Slots: the devices that one trial at a time has to itself, where several trials work side by side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from hardware.cores import idle_first
from search.options import Options, Plan


@dataclass(frozen=True)
class Slot:
    """Devices that one trial at a time has to itself: cores, or GPUs. It trains on the first, and is timed on all of them."""

    kind: Literal["cpu", "cuda"]
    indices: tuple[int, ...]

    @property
    def index(self) -> int:
        """The device that a trial trains on."""
        return self.indices[0]

    def visible(self) -> list[str]:
        """What CUDA calls the GPUs."""
        setting = os.environ.get("CUDA_VISIBLE_DEVICES")
        return [setting.split(",")[index] if setting else str(index) for index in self.indices]

    def environment(self, *, whole: bool = False) -> dict[str, str]:
        """What confines a process to the device that a trial trains on, or to the whole slot."""
        if self.kind == "cpu":
            return {"CUDA_VISIBLE_DEVICES": ""}
        names = self.visible()
        return {"CUDA_VISIBLE_DEVICES": ",".join(names) if whole else names[0]}


def slots(kind: Literal["cpu", "cuda"], count: int, each: int = 1) -> list[Slot]:
    """Slots of ``each`` devices, out of ``count``; on CPU no more than there are cores for, but one at least."""
    devices = tuple(range(count)) if kind == "cuda" else idle_first(count)[:count]
    return [Slot(kind, devices[begin : begin + each]) for begin in range(0, max(1, len(devices) - each + 1), each)]


def slots_of(options: Options, plan: Plan) -> list[Slot]:
    """What trials work on side by side. Without --gpus-per-trial, all devices are one slot where the clock is the objective."""
    here = options.gpus if plan.elsewhere is None or plan.kind == "cpu" else 1
    if options.gpus_per_trial is not None:
        return slots(plan.kind, here, min(here, options.gpus_per_trial))
    return slots(plan.kind, here, 1 if options.throughput == "predicted" else here)
