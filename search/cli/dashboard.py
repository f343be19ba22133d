"""`grow dashboard`."""

from __future__ import annotations

from pathlib import Path

from search.terminal import say


def dashboard(run: str, /, *, port: int = 8080, runs_dir: Path = Path("runs")) -> int:
    """Open a run in Optuna's dashboard, for this machine alone, until Ctrl-C; also a run that is at work.

    The dashboard works on a copy: what is done in it does not reach the run. The report, the front and the networks on it are among
    the artifacts.

    Example: grow dashboard mnist-1 --port 8080

    Parameters
    ----------
    run
        Name of a run, or its path. A study that was given by path is run as code.
    port
        Port of the loopback interface; 0 takes any that is free.
    runs_dir
        Folder of all runs.
    """
    import time

    from search.dashboard import served
    from search.load import LoadedRun
    from search.process import noted_signals
    from search.rundir import find_run

    with noted_signals() as signals, served(LoadedRun(find_run(run, runs_dir)), port) as (address, copy):
        print(address, flush=True)
        say("a copy of the run is shown, and follows it; end with Ctrl-C")
        while signals.received is None:
            copy.follow()
            time.sleep(0.5)
    return 0
