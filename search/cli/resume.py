"""`grow resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from search.cli.output import conclude

if TYPE_CHECKING:
    from search.rundir import RunFolder

Flag = Parameter(negative="")


def resume(
    run: str,
    /,
    *,
    add: int = 0,
    allow_config_change: Annotated[bool, Flag] = False,
    take_over: Annotated[bool, Flag] = False,
    storage: str | None = None,
    runs_dir: Path = Path("runs"),
    json: Annotated[bool, Flag] = False,
) -> int:
    """Go on with a run that was stopped or killed: finished trials stay, the others continue from their last checkpoint.

    Example: grow resume mnist-1 --add 8

    Where the run is shared through a storage, this process joins those that work on it already; see `grow run --help`.

    Parameters
    ----------
    run
        Name of a run, or its path.
    add
        Trials to add to the budget, which is a total: without it, a run that has met its budget stays as it is, and that is a success.
    allow_config_change
        Go on although the study, the code or config.toml have changed; otherwise what changed is shown, and nothing is done.
    take_over
        Go on although the run belongs to a process on another host, which cannot be seen from here: only where that is known to have ended.
        One on this host that has ended is taken over without it.
    storage
        URL of the storage that the run is shared through, where the run's own lacks a password; best given by GROW_STORAGE, which says
        nothing to a run that is not shared.
    runs_dir
        Folder of all runs.
    json
        Print one JSON object on stdout at the end, and nothing else there.
    """
    from search.options import RunRecord
    from search.run import resume as go_on
    from search.rundir import find_run
    from search.storage_url import storage_url

    folder = find_run(run, runs_dir)
    finished = add == 0 and RunRecord.read(folder).state == "complete"
    url = storage_url(_meant(storage, folder))
    done = go_on(folder, add=add, allow_change=allow_config_change, storage=url, take_over=take_over)
    return conclude(done, as_json=json, finished_before=finished)


def _meant(storage: str | None, folder: RunFolder) -> str | None:
    """The storage that is meant for this run: what GROW_STORAGE or a file gives to every run is nothing to one that has no storage."""
    from search.cli.configuration import COMMAND_LINE, SOURCES
    from search.options import Options

    if SOURCES.get({}).get("storage", COMMAND_LINE) == COMMAND_LINE or Options.read(folder).storage is not None:
        return storage
    return None
