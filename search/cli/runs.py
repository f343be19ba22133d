"""`grow runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Parameter(negative="")
DEFAULT = Path("runs")


def runs(*, runs_dir: Path = DEFAULT, json: Annotated[bool, Flag] = False, csv: Annotated[bool, Flag] = False) -> int:
    """List the runs of a folder.

    Example: grow runs

    Parameters
    ----------
    runs_dir
        Folder of all runs.
    json
        Print one JSON object.
    csv
        Print CSV, one row a run.
    """
    from search.cli.output import check_one_format, print_csv, print_json
    from search.errors import RunNotFoundError
    from search.listing import ListedRun, listing

    check_one_format(json=json, csv=csv)
    if not runs_dir.is_dir() and runs_dir != DEFAULT:  # which is made by the first run
        raise RunNotFoundError(f"runs_dir is {str(runs_dir)!r}, but must be a folder that exists; choose another with --runs-dir")
    found = listing(runs_dir)
    if json:
        print_json(found)
    elif csv:
        print_csv(found["runs"], list(ListedRun.__annotations__))
    else:
        from search import report

        rows = [
            tuple(
                "-" if value is None else str(value)
                for value in (run["run"], run["state"], run["study"], run["trials_done"], run["on_front"])
            )
            for run in found["runs"]
        ]
        none = f"no runs in {runs_dir}" if runs_dir.is_dir() else f"no runs: there is no folder {runs_dir} yet"
        columns = ("run", "state", "study", "trials done", "on the front")
        report.show(report.table(f"runs in {runs_dir}" if rows else none, columns, rows, text=columns[:3]))
    return 0
