"""`grow resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.cli.output import conclude

Flag = Parameter(negative="")


def resume(
    run: str,
    /,
    *,
    add: int = 0,
    allow_config_change: Annotated[bool, Flag] = False,
    runs_dir: Path = Path("runs"),
    json: Annotated[bool, Flag] = False,
) -> int:
    """Go on with a run that was stopped or killed: finished trials stay, the others continue from their last checkpoint.

    Example: grow resume mnist-1 --add 8

    Parameters
    ----------
    run
        Name of a run, or its path.
    add
        Trials to add to the budget, which is a total: without it, a run that has met its budget stays as it is.
    allow_config_change
        Go on although the study, the code or config.toml have changed; otherwise what changed is shown, and nothing is done.
    runs_dir
        Folder of all runs.
    json
        Print one JSON object on stdout at the end, and nothing else there.
    """
    from search.run import resume as go_on
    from search.rundir import find_run

    return conclude(go_on(find_run(run, runs_dir), add=add, allow_change=allow_config_change), as_json=json)
