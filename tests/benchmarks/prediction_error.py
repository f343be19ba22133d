"""How far are the cost model's predictions from the clock?

    python -m tests.benchmarks.prediction_error [--gpus 2] [--calibrate] [--json] [--only KEY=VALUE] [--seconds 1]

Trains the held-out cases of `grow calibrate` for some steps each, in turns, and compares them with the profile of these devices as it
is in the cache: measured when there is none, with the coefficients of the last calibration. `--calibrate` does that first, profile
included. A step is measured in units of a yardstick that runs beside it, a fixed product; measured is that many times the yardstick's
median over all cases. A row's ratio is predicted over measured; its range is that of the rounds. The summary goes to stderr. `--only`
may be repeated; its keys are network, density, batch, strategy, devices and crossing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields

import torch

from hardware.cache import keep, obtain
from hardware.calibrate import Case, Comparison, calibrate, cases, compare, summary
from hardware.devices import discover
from hardware.profile import Profile
from hardware.profile.key import machine
from hardware.trust import beyond


def selected(chosen: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases whose fields have the values asked for."""
    wanted = [tuple(text.partition("=")[::2]) for text in only]
    known = [field.name for field in fields(Case)]
    for key, _ in wanted:
        if key not in known:
            raise SystemExit(f"only is {key!r}, but must be KEY=VALUE with one of {', '.join(known)}")
    return [case for case in chosen if all(str(getattr(case, key)) == value for key, value in wanted)]


def row(compared: Comparison) -> dict[str, object]:
    """One case; a slow round makes a small ratio."""
    return {
        "benchmark": "prediction_error",
        "case": asdict(compared.case),
        "against": "the clock",
        "ratio": compared.ratio,
        "ratio_min": compared.predicted_s / compared.highest_s,
        "ratio_max": compared.predicted_s / compared.lowest_s,
    }


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
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    profile = obtain(discover("auto", arguments.gpus).devices, anew=arguments.calibrate, progress=say)
    if arguments.calibrate:
        profile, compared = calibrate(profile, seconds_per_case=arguments.seconds, progress=say)
        keep(profile, say)
        chosen = set(selected([found.case for found in compared], arguments.only))
        compared = [found for found in compared if found.case in chosen]
    else:
        chosen_cases = selected(cases(arguments.gpus)[1], arguments.only)
        if not chosen_cases:
            raise SystemExit(f"only is {arguments.only}, but must leave a case; `--json` without it lists them all")
        compared = compare(profile, chosen_cases, seconds_per_case=arguments.seconds, progress=say)
    if arguments.json:
        sys.stdout.write(json.dumps([row(found) for found in compared]) + "\n")
    else:
        report(profile, compared)
    if len(compared) > 2:
        found = summary(compared)
        errors = f"median error {found.median_error:.1%}, worst {found.worst_error:.1%}, Kendall tau {found.kendall_tau:.2f}"
        say(f"{found.cases} cases: {errors}")
    say(", ".join(f"{name} {value or '-'}" for name, value in machine().items()))


if __name__ == "__main__":
    main()
