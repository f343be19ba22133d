"""`grow report`."""

from __future__ import annotations

from pathlib import Path


def report(run: str, /, *, output: Path | None = None, runs_dir: Path = Path("runs")) -> int:
    """Write a run as one HTML page that needs no network, and print its path.

    The front with its baselines, how each network grew, pictures of the networks by device, their connections, what crosses every link,
    predicted against measured step times, what mattered, and what failed. Works for a run that is at work, too.

    Example: grow report mnist-1 --output mnist-1.html

    Parameters
    ----------
    run
        Name of a run, or its path. A study that was given by path is run as code.
    output
        File to write; RUN/report/index.html by default.
    runs_dir
        Folder of all runs.
    """
    from search.cli.output import tell_losses
    from search.errors import ConfigurationError
    from search.files import write_text
    from search.load import LoadedRun
    from search.page import report as page
    from search.rundir import find_run

    folder = find_run(run, runs_dir)
    target = output or folder.path / "report" / "index.html"
    loaded = LoadedRun(folder)
    tell_losses(loaded.document)
    text = page(loaded)
    try:
        write_text(target, text)
    except OSError as error:
        raise ConfigurationError(
            f"output is {str(target)!r}, but must be a file that can be written ({error.strerror}); choose another with --output"
        ) from error
    print(target)
    return 0
