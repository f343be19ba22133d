"""`grow runs`."""

from __future__ import annotations

from pathlib import Path


def runs(*, runs_dir: Path = Path("runs")) -> int:
    """List the runs of a folder.

    Example: grow runs

    Parameters
    ----------
    runs_dir
        Folder of all runs.
    """
    from search import report
    from search.errors import RunNotFoundError
    from search.results import document
    from search.rundir import run_folders

    rows = []
    for folder in run_folders(runs_dir):
        try:
            found = document(folder)
        except RunNotFoundError:
            rows.append((folder.name, "damaged", "-", "-", "-"))
            continue
        done = sum(trial["state"] != "running" for trial in found["trials"])
        rows.append((found["run"], found["state"], found["study"], str(done), str(len(found["pareto"]))))
    title = f"runs in {runs_dir}" if rows else f"no runs in {runs_dir}"
    report.show(report.table(title, ("run", "state", "study", "trials done", "on the front"), rows, text=("run", "state", "study")))
    return 0
