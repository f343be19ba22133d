"""How far are the cost model's predictions from the clock?

    python -m tests.benchmarks.prediction_error [--gpus 2] [--calibrate] [--json] [--only KEY=VALUE] [--seconds 1]

Trains the held-out cases of `grow calibrate` for some steps each, in turns, and compares them with the profile of these devices as it
is in the cache: measured when there is none, with the coefficients of the last calibration. `--calibrate` does that first, profile
included. A step is measured in units of a yardstick that runs beside it, a fixed product; measured is that many times the yardstick's
median over all cases. A row's ratio is predicted over measured; its range is that of the rounds. The summary goes to stderr. `--only`
may be repeated; its keys are units, device, network, density, batch, strategy, devices and crossing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

import torch
from torch import nn

from hardware.cache import keep, obtain
from hardware.calibrate import Case, Comparison, calibrate, cases, compare, summary
from hardware.calibrate.cases import NETWORKS
from hardware.devices import discover
from hardware.profile import Profile
from hardware.profile.key import machine
from hardware.trust import beyond
from tests.benchmarks import rows


@cache
def widest(network: str) -> int:
    """Units of the widest hidden space of a network; none of its layers is made."""
    with torch.device("meta"):
        module, _ = NETWORKS[network]()
    *hidden, _ = (layer.weight.shape[0] for layer in module if isinstance(layer, nn.Linear | nn.Conv2d))  # type: ignore[attr-defined]
    return max(hidden)


def told(case: Case, device: str) -> rows.Case:
    """A case with the keys of every benchmark."""
    return {"units": widest(case.network), "device": device, **asdict(case)}


def selected(chosen: Sequence[Case], only: Sequence[str], device: str) -> list[Case]:
    """The cases whose fields have the values asked for."""
    left = rows.selected([told(case, device) for case in chosen], only)
    return [case for case in chosen if told(case, device) in left]


def row(compared: Comparison, device: str) -> dict[str, object]:
    """One case; a slow round makes a small ratio."""
    ratios = [compared.predicted_s / seconds for seconds in (compared.highest_s, compared.measured_s, compared.lowest_s)]
    return rows.row("prediction_error", told(compared.case, device), "the clock", ratios)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def report(profile: Profile, compared: Sequence[Comparison]) -> None:
    """A line a case."""
    for found in sorted(compared, key=lambda found: found.error):
        notes = "; ".join(beyond(profile, found.case.work, found.case.strategy, found.case.batch, found.case.devices))
        times = f"{1e3 * found.predicted_s:8.2f} predicted, {1e3 * found.measured_s:8.2f} ms measured"
        sys.stdout.write(f"{found.ratio:6.2f}  {times}  {found.case}{'  ' + notes if notes else ''}\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    rows.add_options(parser)
    arguments = parser.parse_args()
    found_devices = discover("auto", arguments.gpus)
    device = found_devices.kind
    chosen = selected(cases(arguments.gpus)[1], arguments.only, device)
    torch.set_num_threads(1)
    profile = obtain(found_devices.devices, anew=arguments.calibrate, progress=say)
    if arguments.calibrate:
        profile, compared = calibrate(profile, seconds_per_case=arguments.seconds, progress=say)
        keep(profile, say)
        compared = [found for found in compared if found.case in chosen]
    else:
        compared = compare(profile, chosen, seconds_per_case=arguments.seconds, progress=say)
    if arguments.json:
        rows.write([row(found, device) for found in compared], True)
    else:
        report(profile, compared)
    if len(compared) > 2:
        found = summary(compared)
        errors = f"median error {found.median_error:.1%}, worst {found.worst_error:.1%}, Kendall tau {found.kendall_tau:.2f}"
        say(f"{found.cases} cases: {errors}")
    say(", ".join(f"{name} {value or '-'}" for name, value in machine().items()))


if __name__ == "__main__":
    main()
