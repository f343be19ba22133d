"""`grow resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.cli.output import conclude


def resume(run: str, /, *, runs_dir: Path = Path("runs"), json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Go on with a run that was stopped or killed: finished trials stay, the others continue from their last checkpoint.

    Example: grow resume mnist-1

    Parameters
    ----------
    run
        Name of a run, or its path.
    runs_dir
        Folder of all runs.
    json
        Print one JSON object on stdout at the end, and nothing else there.
    """
    from search.run import resume as go_on
    from search.rundir import find_run

    return conclude(go_on(find_run(run, runs_dir)), as_json=json)
