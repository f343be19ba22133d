"""`grow best`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Parameter(negative="")


def best(run: str, /, *, runs_dir: Path = Path("runs"), json: Annotated[bool, Flag] = False) -> int:
    """Show the best network of a run and how to use it: the fastest one on the front, so within the tolerance of trial 0.

    Example: grow best mnist-1

    Parameters
    ----------
    run
        Name of a run, or its path.
    runs_dir
        Folder of all runs.
    json
        Print the trial as one JSON object, with the paths of its checkpoint and its recipe.
    """
    from search.cli.output import print_json, tell_losses
    from search.errors import NoUsableTrialError
    from search.results import best_document, document, fastest
    from search.rundir import find_run

    folder = find_run(run, runs_dir)
    found = document(folder)
    tell_losses(found)
    chosen = fastest(found)
    if chosen is None:
        raise NoUsableTrialError(f"run {found['run']!r} has no trial on its front yet; wait for one, or resume the run")
    if json:
        print_json(best_document(folder, found, chosen))
        return 0
    from search import report

    files = folder.trial(chosen["number"])
    report.show(*report.best_tables(found, chosen), f"Its weights and topology: {files.checkpoint}", f"Its recipe: {files.recipe}")
    return 0
