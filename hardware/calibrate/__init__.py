"""Predictions against the clock: coefficients fitted on some cases, errors found on others.

The cost model's parts are measured one by one (`hardware.sweep`). What a step takes beyond them has few causes, each with a coefficient:

    alone, together   computation on one device and on all: caches and memory that a whole step shares
    halo, sum         communication within a step: waiting for the slowest device, whose reasons are many
    call_s            what a step does for every collective, however small

Legend: predicted and measured are seconds of a step. Measured is told by a yardstick (`hardware.sweep.clock.Yardstick`), a fixed
product that runs beside every turn: how many times as long a step took, times the yardstick's median over all cases. By the plain clock
a case would be as fast as the machine was just then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from statistics import median

import numpy as np

from hardware.calibrate.cases import Case, cases, job
from hardware.cost import predict
from hardware.execute.measure import MOST_WAITED, Throughput, measure_throughput
from hardware.profile import Profile, Progress, calibrated
from hardware.profile.calibration import Calibration, Coefficients
from hardware.tables import FloatArray
from hardware.trust import quantities

__all__ = ["Case", "Comparison", "calibrate", "cases", "compare", "fit", "summary"]

TOGETHER = 16
"""Cases that are timed in turns: more would need more memory, and be further apart in time."""
STIFFNESS = 0.05
"""How much a coefficient of e costs, in squared logarithmic errors a case: what the cases do not tell stays 1."""
LIMITS = (0.2, 4.0)
CALL_LIMITS = (0.0, 2e-3)
CALL_SCALE_S = 1e-3


@dataclass(frozen=True)
class Comparison:
    """A case by the cost model and by the clock, told by the yardstick. lowest_s, highest_s: the range over the rounds; waited:
    `Throughput.waited`.
    """

    case: Case
    predicted_s: float
    measured_s: float
    lowest_s: float
    highest_s: float
    waited: float = 0.0

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return abs(self.ratio - 1)


def predicted_s(profile: Profile, case: Case) -> float:
    """Seconds of a step by the cost model."""
    return predict(case.work, case.strategy, case.partition, profile, case.batch, case.devices).total_s


def compare(
    profile: Profile, chosen: Sequence[Case], *, seconds_per_case: float = 1.0, rounds: int = 7, progress: Progress = lambda message: None
) -> list[Comparison]:
    """Time some cases, in turns, with the kernels that the profile finds fastest, and predict them.

    Cases of all kinds are timed together, those to fit to and those held out, so that a change of the machine's speed hits all alike.
    Measured seconds are those at the speed that the machine had in the median of all turns, by the yardstick beside each.
    """
    found: dict[int, Throughput] = {}
    groups = -(-len(chosen) // TOGETHER)
    for group in range(groups):
        some = chosen[group::groups]
        progress(f"timing group {group + 1} of {groups}, {len(some)} of {len(chosen)} cases")
        timed = measure_throughput(
            job,
            [case.text for case in some],
            ranks=max(case.devices for case in some),
            kind=profile.devices[0].kind,
            seconds_per_job=seconds_per_case,
            rounds=rounds,
            choose=profile.kernel,
        )
        found.update((group + place * groups, result) for place, result in enumerate(timed))
    if not found:
        return []
    usual_s = median(result.yardstick_s for result in found.values())
    waited = median(result.waited for result in found.values())
    if waited > MOST_WAITED:
        progress(f"other programs had {waited:.0%} of the processors' time: these figures are of a busy machine")
    return [_comparison(profile, case, found[number], usual_s) for number, case in enumerate(chosen)]


def _comparison(profile: Profile, case: Case, result: Throughput, yardstick_s: float) -> Comparison:
    middle, lowest, highest = (ratio * yardstick_s for ratio in result.step_yardsticks)
    return Comparison(case, predicted_s(profile, case), middle, lowest, highest, result.waited)


def fit(profile: Profile, compared: Sequence[Comparison]) -> Coefficients:
    """The coefficients with which the profile comes nearest to the measured steps, in logarithms, and stays near 1 where it can."""
    from scipy.optimize import least_squares

    measured = np.log([comparison.measured_s for comparison in compared])
    stiffness = np.sqrt(STIFFNESS)

    def misses(tried: FloatArray) -> FloatArray:
        adjusted = replace(profile, coefficients=_coefficients(tried))
        missed = np.log([predicted_s(adjusted, comparison.case) for comparison in compared]) - measured
        return np.concatenate([missed, stiffness * tried])

    ratios = len(fields(Coefficients)) - 1
    low = [np.log(LIMITS[0])] * ratios + [CALL_LIMITS[0] / CALL_SCALE_S]
    high = [np.log(LIMITS[1])] * ratios + [CALL_LIMITS[1] / CALL_SCALE_S]
    begin = [0.0] * ratios + [0.02]
    found = least_squares(misses, begin, bounds=(low, high), x_scale=0.1, loss="soft_l1", f_scale=0.1, diff_step=1e-3)
    return _coefficients(found.x)


def _coefficients(tried: FloatArray) -> Coefficients:
    """Logarithms of the ratios, and the seconds of a call in their scale."""
    alone, together, halo, added = map(float, np.exp(tried[:-1]))
    return Coefficients(alone, together, halo, added, float(tried[-1]) * CALL_SCALE_S)


def calibrate(
    profile: Profile, *, seconds_per_case: float = 1.0, rounds: int = 7, progress: Progress = lambda message: None
) -> tuple[Profile, list[Comparison]]:
    """The profile with fitted coefficients and its errors, and the held-out cases that these are of, measured as `compare` does."""
    if profile.word != "predicted":
        differences = ", ".join(profile.differences())
        raise ValueError(f"profile is of {profile.described}, but must be of this machine ({differences}); measure it with `grow profile`")
    for_fit, held = cases(len(profile.devices))
    plain = replace(profile, coefficients=Coefficients(), calibration=None)
    timed = compare(plain, [*for_fit, *held], seconds_per_case=seconds_per_case, rounds=rounds, progress=progress)
    coefficients = fit(plain, timed[: len(for_fit)])
    fitted = replace(plain, coefficients=coefficients)
    compared = [replace(comparison, predicted_s=predicted_s(fitted, comparison.case)) for comparison in timed[len(for_fit) :]]
    return calibrated(plain, coefficients, summary(compared)), compared


def summary(compared: Sequence[Comparison]) -> Calibration:
    """Errors, order and range of some comparisons."""
    from scipy.stats import kendalltau

    errors = [comparison.error for comparison in compared]
    tau = kendalltau([c.predicted_s for c in compared], [c.measured_s for c in compared]).statistic
    ranges = [quantities(c.case.work, c.case.batch, c.case.devices) for c in compared]
    return Calibration(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cases=len(compared),
        median_error=median(errors),
        worst_error=max(errors),
        kendall_tau=float(tau),
        strategies=tuple(dict.fromkeys(_names(compared))),
        low={name: min(found[name] for found in ranges) for name in ranges[0]},
        high={name: max(found[name] for found in ranges) for name in ranges[0]},
    )


def _names(compared: Sequence[Comparison]) -> Iterator[str]:
    """Names of the strategies, the older ones of recipes among them."""
    from hardware.layout import OLD_NAMES

    for comparison in compared:
        yield comparison.case.strategy
        yield from (old for old, new in OLD_NAMES.items() if new == comparison.case.strategy)
