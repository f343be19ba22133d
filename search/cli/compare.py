"""`grow compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Parameter(negative="")


def compare(*runs: str, runs_dir: Path = Path("runs"), json: Annotated[bool, Flag] = False, csv: Annotated[bool, Flag] = False) -> int:
    """Show runs side by side: hypervolume from a common reference point, best and median figures.

    Example: grow compare mnist-1 mnist-2 mnist-3

    Parameters
    ----------
    runs
        Names of runs, or their paths.
    runs_dir
        Folder of all runs.
    json
        Print one JSON object.
    csv
        Print CSV, one row a run.
    """
    from search.cli.output import check_one_format, print_csv, print_json, tell_losses
    from search.compare import compare as compared
    from search.compare import tables
    from search.errors import ConfigurationError
    from search.results import document
    from search.rundir import find_run

    check_one_format(json=json, csv=csv)
    if not runs:
        raise ConfigurationError("runs is empty, but must name at least one run; `grow runs` lists them")
    documents = [document(find_run(run, runs_dir)) for run in runs]
    for each in documents:
        tell_losses(each)
    found = compared(documents)
    if json:
        print_json(found)
    elif csv:
        print_csv([*found["runs"]])
    else:
        from search.report import show

        show(*tables(found))
    return 0
