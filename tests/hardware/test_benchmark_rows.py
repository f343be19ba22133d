"""What all benchmarks have in common: the keys of their cases, and how some of them are chosen."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module

import pytest

from tests import benchmarks
from tests.benchmarks.rows import KEYS, row, selected

CASE = {"units": 8, "batch": 4, "density": 0.5, "device": "cpu"}
MODULES = [found.name for found in pkgutil.iter_modules(benchmarks.__path__)]
RUN = [name for name in MODULES if hasattr(import_module(f"tests.benchmarks.{name}"), "main")]


@pytest.mark.parametrize("name", RUN)
def test_every_benchmark_has_cases_with_the_keys_of_all_and_refuses_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--json", "--only", "nobody=1"])
    with pytest.raises(SystemExit, match=r"--only is 'nobody=1', but must be KEY=VALUE with one of ") as refused:
        import_module(f"tests.benchmarks.{name}").main()
    known = str(refused.value).partition("one of ")[2].split(", ")
    assert set(KEYS) <= set(known)


def test_a_row_or_a_case_without_one_of_the_keys_is_refused() -> None:
    for key in KEYS:
        case = {name: value for name, value in CASE.items() if name != key}
        for build in (lambda case=case: row("name", case, "another", [1.0]), lambda case=case: selected([case], [])):
            with pytest.raises(ValueError, match=f"but must have {key} as well"):
                build()


def test_a_row_has_the_median_of_the_ratios_their_range_and_what_else_was_found() -> None:
    assert row("name", CASE, "another", [3.0, 1.0, 7.0], seconds=2.0) == {
        "benchmark": "name",
        "case": CASE,
        "against": "another",
        "ratio": 3.0,
        "ratio_min": 1.0,
        "ratio_max": 7.0,
        "seconds": 2.0,
    }


def test_cases_are_chosen_by_values_however_a_number_is_written() -> None:
    cases = [{**CASE, "density": density, "net": net} for density in (0.05, 0.1) for net in ("a", "b")]
    assert selected(cases, ["density=5e-2"]) == cases[:2]
    assert selected(cases, ["density=0.10", "net=b"]) == cases[3:]
    with pytest.raises(SystemExit, match="leaves no case, but must be of units=8"):
        selected(cases, ["net=c"])
    with pytest.raises(SystemExit, match="--only is 'net', but must be KEY=VALUE"):
        selected(cases, ["net"])
