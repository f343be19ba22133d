"""`grow show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.errors import ConfigurationError


def show(
    run: str, trial: int | None = None, /, *, runs_dir: Path = Path("runs"), json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Show a run's trials and front, also while it works, or the course of one trial: its recipe, accuracy, growing and pruning.

    Example: grow show mnist-1 4

    Parameters
    ----------
    run
        Name of a run, or its path.
    trial
        Number of a trial.
    runs_dir
        Folder of all runs.
    json
        Print JSON: the run's object, or the trial's out of it.
    """
    from search.cli.output import print_json
    from search.results import document
    from search.rundir import find_run

    folder = find_run(run, runs_dir)
    found = document(folder)
    if trial is not None and not 0 <= trial < len(found["trials"]):
        raise ConfigurationError(f"trial is {trial}, but must be below {len(found['trials'])}, the trials of run {found['run']!r} so far")
    if json:
        print_json(found if trial is None else found["trials"][trial])
        return 0
    from search import report

    if trial is None:
        report.show(report.all_trials_table(found), *report.pareto_tables(found))
    else:
        report.show(*report.trial_tables(folder, found["trials"][trial]))
    return 0
