"""What is measured of a machine, one record a reading: layer steps, operators, messages, collectives, and what all at once costs.

Legend: rows, columns and batch are those of the product (batch, columns) x (columns, rows); a convolution counts its taps as
columns and its output positions as batch. Times in seconds, sizes in bytes; a collective's bytes are what one rank hands in.
Spread is the range of the middle half of the repeats over their median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Collective: TypeAlias = Literal["exchange", "sum", "gather"]
"""What ranks do together: every one hands the others equal shares of its bytes (all-to-all), all add up a tensor (all-reduce), all
get everybody's (all-gather)."""


@dataclass(frozen=True)
class KernelTime:
    """What one layer was measured to add to a step on one device while the others are idle. ``kernel`` is the name of a table."""

    kernel: str
    rows: int
    columns: int
    batch: int
    density: float
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class OperatorTime:
    """One measured operator of `hardware.operators`, forward and backward, on so many values that go in. forward_s: the way forward."""

    operator: str
    values: int
    seconds: float
    forward_s: float
    spread: float = 0.0


@dataclass(frozen=True)
class Contention:
    """How much longer a layer step takes while all ``devices`` compute: they share memory, caches and power. bytes: what it touches."""

    kernel: str
    devices: int
    bytes: int
    ratio: float


@dataclass(frozen=True)
class MeasuredLink:
    """A link between two devices, by their places."""

    first: int
    second: int
    latency_s: float
    bandwidth_bytes_per_s: float
    medium: str = ""


@dataclass(frozen=True)
class MessageTime:
    """One way of a message between two devices, by their places."""

    first: int
    second: int
    bytes: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class CollectiveTime:
    """One collective on the first ``ranks`` devices, as a step meets it: between computations, waiting for the slowest included."""

    collective: Collective
    ranks: int
    bytes: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class HaloTime:
    """What dividing a space costs a step: values picked, sent, received and joined, and the way back of their gradients.

    own_bytes, halo_bytes: values of a batch that a rank holds itself, and that it gets from the others. by_unit: whether those of a unit
    lie together in memory, as sparse kernels leave them, or those of a sample, which takes longer: messages are by unit.
    """

    ranks: int
    own_bytes: int
    halo_bytes: int
    seconds: float
    spread: float = 0.0
    by_unit: bool = False


LEAST_HIDDEN = 0.01
"""Share of a sum that a computation hides at least: where none is hidden, the computation would stand still."""


@dataclass(frozen=True)
class Overlap:
    """A computation under which a sum of so many bytes runs, the two alone, and both at once."""

    ranks: int
    bytes: int
    computation_s: float
    communication_s: float
    together_s: float

    @property
    def slowdown(self) -> float:
        """By what factor a device computes more slowly while it communicates, as `hardware.simulate.schedule` takes it: from 1 to 100.

        A computation of C s that runs at 1/s of its rate for the c s of a sum ends at T = C + c (1 - 1/s), so s = c / (c - (T - C)): 1
        hides the whole sum, and without end is one thing after the other.

        >>> Overlap(2, 1000, computation_s=4.0, communication_s=2.0, together_s=5.0).slowdown
        2.0
        """
        extra_s = max(0.0, self.together_s - self.computation_s)
        return self.communication_s / max(self.communication_s - extra_s, LEAST_HIDDEN * self.communication_s)
