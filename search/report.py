"""Terminal tables of a run, a trial, and of what there is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from search.files import read_lines
from search.results import RunDocument, TrialDocument, reason_of
from search.rundir import RunFolder
from search.terminal import console, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 150
"""Columns of a table that is not printed on a terminal."""

NEEDED = 130
"""Columns that the table of the front takes."""


UNCERTAIN = "?"
"""Marks a prediction beyond the range in which predictions were compared with the clock."""

NEARLY = 0.9
"""Share of a run's hypervolume that says when the search was as good as done."""

_SHORT = ("role", "state", "strategy")


def show(*parts: RenderableType) -> None:
    """Print on stdout, as wide as the terminal or wide enough for the tables."""
    drawn = console(width=None if sys.stdout.isatty() else WIDTH)
    for part in parts:
        drawn.print(printable(part) if isinstance(part, str) else part)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[str] = ()) -> Table:
    """A table whose columns are numbers, to the right, but for those named in ``text``."""
    made = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        made.add_column(
            column, justify="left" if column in text else "right", overflow="fold", no_wrap=column not in text or column in _SHORT
        )
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def devices_in_words(document: RunDocument) -> str:
    """What the figures were taken on.

    >>> devices_in_words({"devices": {"requested": 2, "kind": "cpu", "names": [], "elsewhere": None}})
    '2 CPU workers'
    """
    devices = document["devices"]
    if devices["elsewhere"] is not None:
        return f"{devices['requested']} of {devices['elsewhere']}"
    kind = {"cpu": "CPU worker", "cuda": "GPU", None: "device"}[devices["kind"]]
    return f"{devices['requested']} {kind}{'s' if devices['requested'] > 1 else ''}"


def _planned(trial: TrialDocument) -> str:
    """Throughput by the cost model, marked where it is beyond what was calibrated."""
    rates = trial["throughput"]
    found = rate(rates["predicted_samples_per_s"] or rates["simulated_samples_per_s"])
    return f"{found} {UNCERTAIN}" if trial["beyond"] else found


def _word(document: RunDocument) -> str:
    """What the cost model's figures are called; both words where the run went on on another machine."""
    rates = [trial["throughput"] for trial in document["trials"]]
    words = [word for word in ("predicted", "simulated") if any(rate[f"{word}_samples_per_s"] for rate in rates)]  # type: ignore[literal-required]
    return " or\n".join(words) or "predicted"


_COLUMNS = (
    "trial",
    "role",
    "validation\naccuracy",
    "test\naccuracy",
    "{word}\nsamples/s",
    "measured\nsamples/s",
    "measured\nagainst\ntrial 0",
    "density",
    "connec-\ntions",
    "devices\nused",
    "strategy",
    "crossing\nunits",
    "communi-\ncation\nvolume",
)


def pareto_tables(document: RunDocument) -> list[RenderableType]:
    """The front, and the baselines that it is compared with."""
    trials = {trial["number"]: trial for trial in document["trials"]}
    chosen = [trial for number, trial in trials.items() if number in document["pareto"] or trial["role"] != "search"]
    return _facts(f"{document['run']}: the Pareto front (*) and the baselines, on {devices_in_words(document)}", document, chosen)


def best_tables(document: RunDocument, trial: TrialDocument) -> list[RenderableType]:
    """One trial as among those of the front."""
    title = f"{document['run']}: the fastest network within the tolerance, on {devices_in_words(document)}"
    return _facts(title, document, [trial])


def _facts(title: str, document: RunDocument, trials: Sequence[TrialDocument]) -> list[RenderableType]:
    """One wide table, or two narrow ones where the terminal has no room for it."""
    dense = document["trials"][0]["throughput"]["measured_samples_per_s"] if document["trials"] else None
    rows = [_row(trial, dense, trial["number"] in document["pareto"]) for trial in trials]
    named = tuple(column.format(word=_word(document)) for column in _COLUMNS)
    notes = list(beyond_lines(trials))
    if not sys.stdout.isatty() or console().width >= NEEDED:
        return [table(title, named, rows, text=("role", "strategy")), *notes]
    halves = ((named[:7], [row[:7] for row in rows]), (named[:1] + named[7:], [(row[0], *row[7:]) for row in rows]))
    return [*(table(title, columns, part, text=("role", "strategy")) for columns, part in halves), *notes]


def beyond_lines(trials: Iterable[TrialDocument]) -> Iterator[str]:
    """What the mark of uncertain predictions stands for, each reason once with the trials that it is of."""
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        for reason in trial["beyond"]:
            reasons.setdefault(reason, []).append(str(trial["number"]))
    for reason, numbers in reasons.items():
        yield f"{UNCERTAIN} beyond what was calibrated (trial {', '.join(numbers)}): {reason}"


def all_trials_table(document: RunDocument) -> Table:
    """Every trial and its state."""
    rows = [
        (
            str(trial["number"]),
            trial["state"].replace("_", " "),
            _role(trial),
            percent(trial["accuracy"]),
            _planned(trial),
            percent(trial["density"]),
            trial["strategy"],
            reason_of(trial),
        )
        for trial in document["trials"]
    ]
    columns = ("trial", "state", "role", "validation\naccuracy", f"{_word(document)}\nsamples/s", "density", "strategy", "reason")
    return table(f"{document['run']}: all trials, {document['state']}", columns, rows, text=("state", "role", "strategy", "reason"))


def reason_lines(document: RunDocument) -> list[RenderableType]:
    """Why the run failed, where it did, and how much its front covers."""
    lines: list[RenderableType] = [] if document["reason"] is None else [f"failed: {document['reason']}\n"]
    reference = document["reference"]
    if reference is not None:
        beyond = f"{percent(reference['accuracy'])} accuracy and {rate(reference['samples_per_s'])} samples/s"
        soon = sum(found["hypervolume"] < NEARLY * (document["hypervolume"] or 0.0) for found in document["hypervolumes"]) + 1
        number = min(soon, len(document["hypervolumes"]))
        when = f", {100 * NEARLY:.0f} % of it after {number} trial{'' if number == 1 else 's'}"
        lines.append(
            f"hypervolume {rate(document['hypervolume'])} samples/s beyond {beyond}, by {document['objective']} throughput{when}\n"
        )
    return lines


def _role(trial: TrialDocument) -> str:
    return "search" if trial["role"] == "search" else "baseline"


def _row(trial: TrialDocument, dense: float | None, member: bool) -> Sequence[str]:
    measured = trial["throughput"]["measured_samples_per_s"]
    return (
        f"{trial['number']} {'*' if member else ' '}",
        _role(trial),
        percent(trial["accuracy"]),
        percent(trial["test_accuracy"]),
        _planned(trial),
        rate(measured),
        f"{measured / dense:.2f}x" if measured and dense else "-",
        *structure_cells(trial),
    )


def structure_cells(trial: TrialDocument) -> tuple[str, ...]:
    """What a trial's network is: density, connections, devices used, strategy, crossing units, communication volume."""
    return (
        percent(trial["density"]),
        "-" if trial["connections"] is None else f"{trial['connections']:,}",
        str(trial["devices_used"]),
        trial["strategy"],
        f"{trial['crossing_units']:,}",
        f"{trial['communication_volume']:,}",
    )


def trial_tables(folder: RunFolder, trial: TrialDocument) -> list[RenderableType]:
    """A trial: its facts, its recipe and its course."""
    files = folder.trial(trial["number"])
    recipe = [(name, _plain(value)) for name, value in trial["recipe"].items()]
    course = [_metrics_row(line) for line in read_lines(files.metrics) if line.get("accuracy") is not None]
    events = [_event_row(line) for line in read_lines(files.history)]
    parts: list[RenderableType] = [
        table(f"trial {trial['number']}", ("fact", "value"), _trial_facts(trial), text=("fact", "value")),
        *(f"{line}\n" for line in beyond_lines([trial])),
        table("recipe", ("field", "value"), recipe, text=("field", "value")),
    ]
    if course:
        columns = ("step", "phase", "loss", "accuracy so far", "density", "connections", "units")
        parts.append(table("course", columns, course, text=("phase", "units")))
    if events:
        headings = ("step", "what", "connections", "units", "loss before", "loss after", "density after", "why")
        parts.append(table("growing and pruning", headings, events, text=("what", "units", "why")))
    return parts


def _trial_facts(trial: TrialDocument) -> list[tuple[str, str]]:
    """What is known of a trial, in words and units."""
    rates = trial["throughput"]
    word = "simulated" if rates["simulated_samples_per_s"] is not None else "predicted"
    structure = ("density", "connections", "devices used", "strategy", "crossing units", "communication volume")
    found = [
        ("state", trial["state"].replace("_", " ")),
        ("role", trial["role"].replace("_", " ")),
        ("validation accuracy", percent(trial["accuracy"])),
        ("test accuracy", percent(trial["test_accuracy"])),
        (f"{word} throughput", _per_second(_planned(trial))),
        ("measured throughput", _per_second(rate(rates["measured_samples_per_s"]))),
        *zip(structure, structure_cells(trial), strict=True),
        ("units", _plain(trial["units"])),
        ("communication", f"{trial['bytes_per_step']:,} bytes/step"),
        ("connections grown", f"{trial['grown']:,}"),
        ("connections pruned", f"{trial['pruned']:,}"),
    ]
    return [*found, ("reason", reason_of(trial))] if reason_of(trial) else found


def _per_second(samples: str) -> str:
    """A rate with its unit, before the mark of what is uncertain.

    >>> _per_second("12,345 ?")
    '12,345 samples/s ?'
    """
    number, mark, _ = samples.partition(f" {UNCERTAIN}")
    return samples if number == "-" else f"{number} samples/s{mark}"


def _metrics_row(line: Mapping[str, object]) -> Sequence[str]:
    return (
        _plain(line.get("step")),
        _plain(line.get("phase")),
        _plain(line.get("loss")),
        percent(line.get("accuracy")),
        percent(line.get("density")),
        _plain(line.get("connections")),
        _plain(line.get("units")),
    )


def _event_row(line: Mapping[str, object]) -> Sequence[str]:
    before = [_plain(line.get(name)) for name in ("step", "what", "connections", "units", "loss_before", "loss_after")]
    return (*before, percent(line.get("density_after")), _plain(line.get("why")))


def percent(value: object) -> str:
    """A share in percent.

    >>> percent(0.9871)
    '98.71 %'
    """
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else "-"


def rate(value: object) -> str:
    """Samples a second, without decimals.

    >>> rate(12345.6)
    '12,346'
    """
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)
