"""Runs side by side: how much of the plane each one's front covers, and what its trials were like in the median.

All hypervolumes are reckoned from one point, the lowest of the runs' own references in each objective, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, TypedDict

from search.hypervolume import hypervolume
from search.report import devices_in_words, percent, rate, table
from search.results import SCHEMA_VERSION, ReferenceDocument, RunDocument, TrialDocument, Word

if TYPE_CHECKING:
    from rich.console import RenderableType


class Medians(TypedDict):
    """Of the searched trials that ended with a network; None where there are none. density: of the whole network, all layers counted."""

    accuracy: float | None
    samples_per_s: float | None
    density: float | None


class RunRow(TypedDict):
    """One run, or the median over all runs. speedup: of the fastest member of the front against trial 0, in the throughput it maximises."""

    run: str
    study: str
    state: str
    devices: str
    objective: Word | None
    trials: float
    usable: float
    on_front: float
    best_accuracy: float | None
    best_samples_per_s: float | None
    speedup: float | None
    hypervolume: float | None
    medians: Medians


class Comparison(TypedDict):
    """Several runs. reference: what all hypervolumes here are reckoned from; notes: what keeps the runs from being comparable."""

    schema_version: int
    reference: ReferenceDocument | None
    runs: list[RunRow]
    median: RunRow
    notes: list[str]


def compare(documents: Sequence[RunDocument]) -> Comparison:
    """The comparison of runs."""
    references = [found["reference"] for found in documents if found["reference"] is not None]
    reference: ReferenceDocument | None = None
    if references:
        accuracy, throughput = (min(r["accuracy"] for r in references), min(r["samples_per_s"] for r in references))
        reference = {"accuracy": accuracy, "samples_per_s": throughput}
    rows = [_row(found, reference) for found in documents]
    return {"schema_version": SCHEMA_VERSION, "reference": reference, "runs": rows, "median": _median_row(rows), "notes": _notes(documents)}


def _row(found: RunDocument, reference: ReferenceDocument | None) -> RunRow:
    trials, word = found["trials"], found["objective"]
    front = [trial for trial in trials if trial["number"] in found["pareto"]]
    searched = [trial for trial in trials if trial["role"] == "search" and trial["state"] in ("complete", "infeasible")]
    fastest = _best(throughput(trial, word) for trial in front)
    dense = throughput(trials[0], word) if trials else None
    points = [(trial["accuracy"], throughput(trial, word)) for trial in front]
    return {
        "run": found["run"],
        "study": found["study"],
        "state": found["state"],
        "devices": devices_in_words(found),
        "objective": word,
        "trials": len(trials),
        "usable": sum(trial["state"] == "complete" for trial in trials),
        "on_front": len(front),
        "best_accuracy": _best(trial["accuracy"] for trial in front),
        "best_samples_per_s": fastest,
        "speedup": fastest / dense if fastest and dense else None,
        "hypervolume": None
        if reference is None
        else hypervolume(
            [(a, s) for a, s in points if a is not None and s is not None], (reference["accuracy"], reference["samples_per_s"])
        ),
        "medians": {
            "accuracy": _median(trial["accuracy"] for trial in searched),
            "samples_per_s": _median(throughput(trial, word) for trial in searched),
            "density": _median(trial["density"] for trial in searched),
        },
    }


def throughput(trial: TrialDocument, word: Word) -> float | None:
    """A trial's throughput of one word."""
    rates = trial["throughput"]
    if word == "measured":
        return rates["measured_samples_per_s"]
    return rates["simulated_samples_per_s"] if word == "simulated" else rates["predicted_samples_per_s"]


def _median_row(rows: Sequence[RunRow]) -> RunRow:
    return {
        "run": f"median of {len(rows)}",
        "study": "",
        "state": "",
        "devices": "",
        "objective": None,
        "trials": median(row["trials"] for row in rows),
        "usable": median(row["usable"] for row in rows),
        "on_front": median(row["on_front"] for row in rows),
        "best_accuracy": _median(row["best_accuracy"] for row in rows),
        "best_samples_per_s": _median(row["best_samples_per_s"] for row in rows),
        "speedup": _median(row["speedup"] for row in rows),
        "hypervolume": _median(row["hypervolume"] for row in rows),
        "medians": {
            "accuracy": _median(row["medians"]["accuracy"] for row in rows),
            "samples_per_s": _median(row["medians"]["samples_per_s"] for row in rows),
            "density": _median(row["medians"]["density"] for row in rows),
        },
    }


def _notes(documents: Sequence[RunDocument]) -> list[str]:
    """What differs between the runs that should not."""
    said: dict[str, set[str]] = {
        "studies": {found["study"] for found in documents},
        "data": {found["data"]["sha256"][:12] for found in documents if found["data"] is not None},
        "words for throughput": {found["objective"] for found in documents},
        "devices": {devices_in_words(found) for found in documents},
    }
    return [
        f"the runs differ in their {what} ({', '.join(sorted(seen))}): compare with care" for what, seen in said.items() if len(seen) > 1
    ]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _best(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


# ---- the table ----


def tables(found: Comparison) -> list[RenderableType]:
    """One row a run, and their medians; then the notes."""
    rows = [*found["runs"], *([found["median"]] if len(found["runs"]) > 1 else [])]
    reference = found["reference"]
    title = "runs side by side" + (
        ""
        if reference is None
        else f"; hypervolume beyond {percent(reference['accuracy'])} and {rate(reference['samples_per_s'])} samples/s"
    )
    words = {row["objective"] for row in found["runs"]}
    word = words.pop() if len(words) == 1 else "planned"
    columns = (
        "run",
        "state",
        "trials",
        "within\ntolerance",
        "on the\nfront",
        "best\naccuracy",
        f"best {word}\nsamples/s",
        "against\ntrial 0",
        "hypervolume\nsamples/s",
        "median\naccuracy",
        "median\nsamples/s",
        "median\ndensity",
    )
    return [table(title, columns, [_cells(row) for row in rows], text=("run", "state")), *found["notes"]]


def _cells(row: RunRow) -> Sequence[str]:
    medians = row["medians"]
    return (
        row["run"],
        row["state"],
        f"{row['trials']:g}",
        f"{row['usable']:g}",
        f"{row['on_front']:g}",
        percent(row["best_accuracy"]),
        rate(row["best_samples_per_s"]),
        "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        rate(row["hypervolume"]),
        percent(medians["accuracy"]),
        rate(medians["samples_per_s"]),
        percent(medians["density"]),
    )
