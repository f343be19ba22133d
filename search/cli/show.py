"""`grow show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Parameter(negative="")


def show(
    run: str,
    trial: int | None = None,
    /,
    *,
    runs_dir: Path = Path("runs"),
    json: Annotated[bool, Flag] = False,
    csv: Annotated[bool, Flag] = False,
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
        Print JSON: the run's object, or the trial's out of it, with its course.
    csv
        Print CSV: one row a trial, or one row for every line of the trial's course and every growth and removal.
    """
    from search.cli.output import check_one_format, print_frame, print_json, tell_losses
    from search.results import check_trial, course_document, document
    from search.rundir import find_run

    check_one_format(json=json, csv=csv)
    folder = find_run(run, runs_dir)
    if csv:
        from search.load import LoadedRun

        loaded = LoadedRun(folder)
        tell_losses(loaded.document)
        frame = loaded.trials.reset_index() if trial is None else loaded.course(trial)
        print_frame(frame.map(_cell))
        return 0
    found = document(folder)
    tell_losses(found)
    if trial is not None:
        check_trial(found, trial)
    if json:
        print_json(found if trial is None else course_document(folder, found, trial))
        return 0
    from search import report

    if trial is None:
        report.show(report.all_trials_table(found), *report.reason_lines(found), *report.pareto_tables(found))
    else:
        report.show(*report.trial_tables(folder, found["trials"][trial]))
    return 0


def _cell(value: object) -> object:
    """Several values in one cell as text."""
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else value
