"""Whole searches for benchmarks that compare one with another: run by the command line, and what became of them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hardware.presets import hardware
from search.changes import changes
from search.compare import throughput
from search.definition import StudyReference
from search.files import last_line, read_json
from search.hypervolume import hypervolume
from search.options import Options, RunRecord, startup_of
from search.recipe import parse_setting
from search.rehearsal import configuration
from search.results import document
from search.rundir import RunFolder
from tests.benchmarks.recipes import widest
from tests.benchmarks.rows import Case, Value, add_options

NO_USABLE_TRIAL = 3
"""Exit code of a search that found nothing within the tolerance, which is an outcome like others."""


@dataclass(frozen=True)
class Outcome:
    """What became of a search.

    trials: how many. samples: training samples of all of them together, of those that were stopped up to there; stopped: how many were.
    reference: the lowest accuracy within the tolerance and no samples/s, fixed by trial 0; hypervolume: beyond it, samples/s.
    """

    trials: int
    samples: int
    stopped: int
    reference: tuple[float, float]
    hypervolume: float


def options(parser: argparse.ArgumentParser) -> None:
    """The options that benchmarks of searches share."""
    parser.add_argument("--studies", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=32, help="budget of every search")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--hardware", help="preset or saved profile; this machine's by default")
    parser.add_argument("--network", help="start network; the study's first one by default")
    parser.add_argument("--data-dir", help="as of grow run")
    parser.add_argument("--tolerance", help="as of grow run")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of grow run")
    parser.add_argument(
        "--runs-dir", type=Path, help="keep the runs here; those that are there already are taken, if they are what is asked for"
    )
    add_options(parser)


def common(arguments: argparse.Namespace, study: str) -> Case:
    """What the case of a search of a study has in every benchmark; a search draws what is not set."""
    settings = {**StudyReference(study).load().settings, **dict(map(parse_setting, arguments.set))}
    batch, density = (settings.get(name, "searched") for name in ("batch_size", "density"))
    assert isinstance(batch, Value)
    assert isinstance(density, Value)
    device = "cpu" if arguments.hardware is None else hardware(arguments.hardware).devices[0].kind
    told: Case = {"study": study, "units": widest(study, arguments.network), "batch": batch, "density": density}
    return {**told, "device": device, "trials": arguments.trials}


@contextmanager
def folder_of_runs(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder that was asked for, or one for the time being."""
    if arguments.runs_dir is not None:
        yield arguments.runs_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def searched(arguments: argparse.Namespace, runs: Path, study: str, seed: int, label: str, more: Sequence[str]) -> RunFolder:
    """Search with these further options, unless that is done already: then it must be what this search would be, or go on from it."""
    name = f"{study}-{label}-{seed}"
    folder = RunFolder(runs / name)
    trials = str(_trials_of(folder, arguments.trials))
    given = ["--study", study, "--gpus", str(arguments.gpus), "--trials", trials, "--seed", str(seed), *more]
    named = {option: getattr(arguments, option.replace("-", "_")) for option in ("hardware", "network", "data-dir", "tolerance")}
    given += [part for option, value in named.items() if value is not None for part in (f"--{option}", value)]
    given += [part for setting in arguments.set for part in ("--set", setting)]
    if not folder.path.exists():
        _grow(["run", *given, "--name", name, "--runs-dir", str(runs)])
        return folder
    other = differences(folder, json.loads(_grow(["run", *given, "--print-config", "--json"])))
    if other:
        raise SystemExit(
            "\n".join((f"{folder.path} is of another search, but must be of this one; remove it, or choose --runs-dir:", *other))
        )
    if document(folder)["state"] != "complete":
        _grow(["resume", str(folder.path)])
    return folder


def _trials_of(folder: RunFolder, asked: int) -> int:
    """The budget that a search may have: what is asked for, or more where it began with that and was given more."""
    if not folder.path.exists() or RunRecord.read(folder).startup != startup_of(asked):
        return asked
    return max(asked, Options.read(folder).trials)


def extended(folder: RunFolder, samples: float) -> None:
    """Let a search go on while a whole training more stays within so many training samples, those of its former trials included."""
    while (more := affordable(folder, samples)) > 0:
        _grow(["resume", str(folder.path), "--add", str(more)])


def affordable(folder: RunFolder, samples: float) -> int:
    """How many whole trainings more stay within so many training samples."""
    return max(0, int((samples - sum(_taken(folder))) // _whole(folder)))


def trials_within(folder: RunFolder, samples: float) -> int:
    """How many of a search's trials began while a whole training more stayed within so many training samples."""
    left = [samples - before for before in accumulate(_taken(folder), initial=0)]
    return next((number for number, rest in enumerate(left) if rest < _whole(folder)), len(left) - 1)


def differences(folder: RunFolder, asked: Mapping[str, Any]) -> list[str]:
    """What a run is of: options that differ from what ``grow run --print-config --json`` says of those asked for, code and versions."""
    record, options = RunRecord.read(folder), Options.read(folder)
    recorded = json.loads(json.dumps(configuration(options, record.study_sha256, {})))
    return [
        f"{name} is {field['value']!r}, but {asked['configuration'][group][name]['value']!r} is asked for"
        for group, fields in recorded.items()
        for name, field in fields.items()
        if any(field[part] != asked["configuration"][group][name][part] for part in ("value", "searched"))
    ] + changes(folder, record, options)


def _grow(arguments: Sequence[str]) -> bytes:
    done = subprocess.run([sys.executable, "-m", "search.cli", *arguments], capture_output=True, check=False)
    if done.returncode not in (0, NO_USABLE_TRIAL):
        raise SystemExit(f"grow {' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr.decode()}")
    return done.stdout


def outcome(folder: RunFolder, trials: int | None = None) -> Outcome:
    """What became of the search in a folder, by its end or after so many trials."""
    found = document(folder)
    reference, word, first = found["reference"], found["objective"], found["trials"][:trials]
    assert reference is not None
    points = [(trial["accuracy"] or 0.0, throughput(trial, word) or 0.0) for trial in first if trial["state"] == "complete"]
    lowest = reference["accuracy"]
    return Outcome(
        trials=len(first),
        samples=sum(_taken(folder)[:trials]),
        stopped=sum(trial["state"] == "stopped_early" for trial in first),
        reference=(lowest, reference["samples_per_s"]),
        hypervolume=hypervolume(points, (lowest, reference["samples_per_s"])),
    )


def _taken(folder: RunFolder) -> list[int]:
    """Training samples that each trial has seen."""
    found = (folder.trial(number) for number in range(len(document(folder)["trials"])))
    lines = ((read_json(files.recipe), last_line(files.metrics)) for files in found)
    return [0 if last is None else int(str(last["step"])) * int(str(recipe["batch_size"])) for recipe, last in lines]


def _whole(folder: RunFolder) -> int:
    """Training samples of a trial that goes to its end; steps and batch must not be searched."""
    recipe = read_json(folder.trial(0).recipe)
    return int(str(recipe["steps"])) * int(str(recipe["batch_size"]))
