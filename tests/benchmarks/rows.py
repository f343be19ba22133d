"""What every benchmark prints: rows of ratios, as JSON or in words, and the choice of some of its cases.

A case has these keys in every benchmark, and others beside them:

- units: of the widest hidden space of the network that is started with (channels in a convolution); of the layer, where it is one
- batch: samples of a step; 1 where the samples play no role
- density: share of the connections that ours ends with, of those of the dense network of as many units; 1.0 where nothing is taken away
- device: the kind that computes, or that is simulated

Where a benchmark itself draws a value or goes through a range, the key holds the text that says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import torch

Value = int | float | str
Case = Mapping[str, Value]
KEYS = ("units", "batch", "density", "device")


def row(benchmark: str, case: Case, against: str, ratios: Sequence[float], **measured: object) -> dict[str, object]:
    """One row: the median of the ratios, with their spread; above 1 ours is better. ValueError for a case without one of `KEYS`."""
    refuse_incomplete(case)
    found = {"benchmark": benchmark, "case": dict(case), "against": against, "ratio": median(ratios)}
    return {**found, "ratio_min": min(ratios), "ratio_max": max(ratios), **measured}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="cases of which KEY is VALUE; may be repeated")


def selected(cases: Iterable[Case], only: Sequence[str]) -> list[Case]:
    """The cases that ``--only`` leaves. SystemExit where it leaves none, or for a key that no case has."""
    cases = list(cases)
    for case in cases:
        refuse_incomplete(case)
    wanted, known = [choice.partition("=") for choice in only], list(dict.fromkeys(key for case in cases for key in case))
    for key, equals, value in wanted:
        if not equals or key not in known:
            raise SystemExit(f"--only is {key + equals + value!r}, but must be KEY=VALUE with one of {', '.join(known)}")
    left = [case for case in cases if all(str(case.get(key)) == value or _equal(case.get(key), value) for key, _, value in wanted)]
    if not left:
        raise SystemExit(f"--only {' '.join(only)} leaves no case, but must be of {'; '.join(map(described, cases))}")
    return left


def refuse_incomplete(case: Case) -> None:
    """ValueError for a case without one of `KEYS`."""
    missing = [key for key in KEYS if key not in case]
    if missing:
        raise ValueError(f"case is {dict(case)}, but must have {', '.join(missing)} as well; see the legend of {__name__}")


def _equal(found: Value | None, value: str) -> bool:
    try:
        return not isinstance(found, str) and found is not None and float(value) == float(found)
    except ValueError:
        return False


def described(case: Case) -> str:
    """A case in words."""
    return ", ".join(f"{key}={value}" for key, value in case.items())


def write(rows: Sequence[Mapping[str, object]], as_json: bool) -> None:
    """Print the rows: JSON, or a line each and one about the machine."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows)) + "\n")
        return
    for found in rows:
        case, more = found["case"], {key: value for key, value in found.items() if key not in COMMON and isinstance(value, Value)}
        assert isinstance(case, Mapping)
        told = "".join(f"; {key} {value:,.4g}" if isinstance(value, float) else f"; {key} {value}" for key, value in more.items())
        spread = f"{found['ratio']:.3g} ({found['ratio_min']:.3g} to {found['ratio_max']:.3g})"
        sys.stdout.write(f"{described(case)}: {spread} against {found['against']}{told}\n")
    threads = torch.get_num_threads()
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {threads} thread(s)\n")


COMMON = ("benchmark", "case", "against", "ratio", "ratio_min", "ratio_max")
