"""What commands print on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import ConfigurationError, NoUsableTrialError
from search.results import RunDocument, document
from search.rundir import RunFolder
from search.terminal import printable, say

if TYPE_CHECKING:
    import pandas as pd


def print_json(data: Mapping[str, object]) -> None:
    """One JSON object, and nothing else."""
    print(json.dumps(data, indent=2, allow_nan=False))


def print_csv(rows: Iterable[Mapping[str, object]], columns: list[str] | None = None) -> None:
    """Rows as CSV with a heading; inner records are spread out, as in ``throughput.measured_samples_per_s``.

    columns: those that there are also where there are no rows; by default what the rows hold.
    """
    import pandas as pd

    from grow.history import flat

    # As objects: beside what is missing, whole numbers stay whole.
    print_frame(pd.DataFrame([flat(row) for row in rows], columns=columns, dtype=object))


def print_frame(frame: pd.DataFrame) -> None:
    """A frame as CSV, to the letter; only on a terminal are control characters in it shown, not obeyed."""
    text = frame.to_csv(index=False)
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)


def check_one_format(*, json: bool, csv: bool) -> None:
    """ConfigurationError where both are asked for."""
    if json and csv:
        raise ConfigurationError("json and csv are both given, but must be at most one of the two; leave one out")


def tell_losses(found: RunDocument) -> None:
    """Say on stderr which trials of a run have lost files: of them, what the journal was told is shown."""
    for trial in found["trials"]:
        if trial["lost"]:
            say(f"trial {trial['number']} has lost {', '.join(trial['lost'])}, missing or damaged; what the journal says is shown")


def conclude(folder: RunFolder, *, as_json: bool, finished_before: bool = False) -> int:
    """The end of `run` and `resume`: the front, and where to look further.

    NoUsableTrialError where no trial is within the tolerance. finished_before: nothing was to be done, so that this is told, but no error.
    """
    from search.report import pareto_tables, show
    from search.rundir import show_command

    found = document(folder)
    if finished_before:  # else it has been said already
        tell_losses(found)
    if as_json:
        print_json(found)
    else:
        show(*pareto_tables(found), f"Look further: {show_command(folder)}")
    searched = [trial for trial in found["trials"] if trial["role"] == "search"]
    if searched and not any(trial["state"] == "complete" for trial in searched):
        told = (
            f"none of the {len(searched)} searched trials of run {found['run']!r} is within the tolerance of trial 0;"
            " start a run with a larger --tolerance or more --trials"
        )
        if not finished_before:
            raise NoUsableTrialError(told)
        say(told)
    return 0


def check_page(name: str, path: Path | None) -> None:
    """ConfigurationError for a file that the option ``name`` asks for where it would not be the page that is written."""
    if path is not None and path.suffix.lower() != ".html":
        raise ConfigurationError(
            f"{name} is {str(path)!r}, but must end in .html, as it is a page for a browser; choose another with --{name}"
        )


def written(name: str, path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that the option ``name`` asked for. ConfigurationError where it cannot be written."""
    try:
        write(path)
    except OSError as error:
        reason = error.strerror or "not writable"
        raise ConfigurationError(f"{name} is {str(path)!r}, but must be a file that can be written ({reason}); choose another") from error
