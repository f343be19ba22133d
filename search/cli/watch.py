"""`grow watch`."""

from __future__ import annotations

from pathlib import Path


def watch(run: str, /, *, runs_dir: Path = Path("runs")) -> int:
    """Follow a run that another process works on, until it ends; then print its front. The run is only read.

    Example: grow watch mnist-1

    Parameters
    ----------
    run
        Name of a run, or its path.
    runs_dir
        Folder of all runs.
    """
    from search.report import pareto_tables, show
    from search.results import document
    from search.rundir import find_run, resume_command, show_command
    from search.watch import watch as follow

    folder = find_run(run, runs_dir)
    follow(folder, resume_command(folder))
    show(*pareto_tables(document(folder)), f"Look further: {show_command(folder)}")
    return 0
