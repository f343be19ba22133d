"""What a profile is corrected by so that its predictions are those of the clock, and how good they then are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Coefficients:
    """By how much measured steps are longer than their measured parts: of computation on one and on all devices, of halos and of sums.

    call_s: what a step spends on every collective beside it, however small: autograd's hooks, picking up and putting back of tensors.
    """

    alone: float = 1.0
    together: float = 1.0
    halo: float = 1.0
    sum: float = 1.0
    call_s: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """How far predictions were from the clock on cases that the coefficients were not fitted to, and what those cases were.

    Errors are abs(predicted / measured - 1). low, high: the range of every quantity of a case.
    """

    made_at: str
    cases: int
    median_error: float
    worst_error: float
    kendall_tau: float
    strategies: tuple[str, ...]
    low: Mapping[str, float]
    high: Mapping[str, float]

    def beyond(self, strategy: str, **quantities: float) -> list[str]:
        """What of a case is out of the calibrated range, in words.

        >>> calibration = Calibration("now", 30, 0.05, 0.2, 0.95, ("single",), {"batch": 64}, {"batch": 512})
        >>> calibration.beyond("units", batch=1024)
        ["strategy is 'units', calibrated single", 'batch is 1024, calibrated 64 to 512']
        """
        found = [] if strategy in self.strategies else [f"strategy is {strategy!r}, calibrated {', '.join(self.strategies)}"]
        for name, value in quantities.items():
            if name in self.low and not self.low[name] * 0.99 <= value <= self.high[name] * 1.01:
                found.append(f"{name} is {value:.4g}, calibrated {self.low[name]:.4g} to {self.high[name]:.4g}")
        return found
