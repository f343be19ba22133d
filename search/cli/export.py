"""`grow export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from search.terminal import say


def export(
    run: str,
    trial: int,
    /,
    *,
    form: Annotated[Literal["torch", "safetensors", "onnx"], Parameter(name="--format")] = "torch",
    output: Path | None = None,
    runs_dir: Path = Path("runs"),
) -> int:
    """Take a trial's trained network home, as a folder that needs nothing of this project; print the folder's path.

    torch: network.py, readable source of torch's own layers with load(), and its weights. safetensors: the weights alone, compressed
    where that is smaller. onnx: one file for every runtime that reads it. Recipe, topology and metrics lie beside them in network.json.

    Example: grow export mnist-1 4 --format onnx

    Parameters
    ----------
    run
        Name of a run, or its path. A study that was given by path is run as code.
    trial
        Number of a trial.
    form
        What to write.
    output
        A new or empty folder; RUN-TRIAL-FORMAT by default.
    runs_dir
        Folder of all runs.
    """
    from search.export import export as written
    from search.export import summary
    from search.load import LoadedRun
    from search.rundir import find_run

    folder = find_run(run, runs_dir)
    target = output or Path(f"{folder.path.resolve().name}-{trial}-{form}")
    for checked in written(LoadedRun(folder), trial, form, target):
        say(checked)
    for name, size in summary(target).items():
        say(f"{name}, {size:,} bytes")
    print(target)
    return 0
