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
from pathlib import Path
from typing import Any

from search.changes import changes
from search.compare import throughput
from search.files import last_line
from search.hypervolume import hypervolume
from search.options import Options, RunRecord
from search.rehearsal import configuration
from search.results import RunDocument, document
from search.rundir import RunFolder
from tests.benchmarks.rows import add_options

NO_USABLE_TRIAL = 3
"""Exit code of a search that found nothing within the tolerance, which is an outcome like others."""


@dataclass(frozen=True)
class Outcome:
    """What became of a search.

    samples: training samples of all trials together, of those that were stopped up to there; stopped: how many were. reference: the lowest
    accuracy within the tolerance and no samples/s, fixed by trial 0; hypervolume: beyond it, samples/s; beyond_dense: beyond the dense
    start network's throughput on one device too, which every search has for nothing.
    """

    samples: int
    stopped: int
    reference: tuple[float, float]
    hypervolume: float
    beyond_dense: float


def options(parser: argparse.ArgumentParser) -> None:
    """The options that benchmarks of searches share."""
    parser.add_argument("--studies", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=32, help="budget of every search")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--hardware", help="preset or saved profile; this machine's by default")
    parser.add_argument("--network", help="start network; the study's first one by default")
    parser.add_argument("--data-dir", help="as of grow run")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of grow run")
    parser.add_argument(
        "--runs-dir", type=Path, help="keep the runs here; those that are there already are taken, if they are what is asked for"
    )
    add_options(parser)


@contextmanager
def folder_of_runs(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder that was asked for, or one for the time being."""
    if arguments.runs_dir is not None:
        yield arguments.runs_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def searched(arguments: argparse.Namespace, runs: Path, study: str, seed: int, label: str, more: Sequence[str]) -> Outcome:
    """Search with these further options, unless that is done already: then it must be what this search would be."""
    name = f"{study}-{label}-{seed}"
    folder = RunFolder(runs / name)
    given = ["--study", study, "--gpus", str(arguments.gpus), "--trials", str(arguments.trials), "--seed", str(seed), *more]
    named = {"--hardware": arguments.hardware, "--network": arguments.network, "--data-dir": arguments.data_dir}
    given += [part for option, value in named.items() if value is not None for part in (option, value)]
    given += [part for setting in arguments.set for part in ("--set", setting)]
    if not folder.path.exists():
        _grow(["run", *given, "--name", name, "--runs-dir", str(runs)])
        return outcome(folder)
    other = differences(folder, json.loads(_grow(["run", *given, "--print-config", "--json"])))
    if other:
        raise SystemExit(
            "\n".join((f"{folder.path} is of another search, but must be of this one; remove it, or choose --runs-dir:", *other))
        )
    if document(folder)["state"] != "complete":
        _grow(["resume", str(folder.path)])
    return outcome(folder)


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


def outcome(folder: RunFolder) -> Outcome:
    """What became of the search in a folder."""
    found = document(folder)
    reference, word = found["reference"], found["objective"]
    dense = throughput(found["trials"][0], word)
    assert reference is not None
    assert dense is not None
    members = [trial for trial in found["trials"] if trial["number"] in found["pareto"]]
    points = [(trial["accuracy"] or 0.0, throughput(trial, word) or 0.0) for trial in members]
    lowest = reference["accuracy"]
    return Outcome(
        samples=sum(_samples(folder, found, number) for number in range(len(found["trials"]))),
        stopped=sum(trial["state"] == "stopped_early" for trial in found["trials"]),
        reference=(lowest, reference["samples_per_s"]),
        hypervolume=hypervolume(points, (lowest, reference["samples_per_s"])),
        beyond_dense=hypervolume(points, (lowest, dense)),
    )


def _samples(folder: RunFolder, found: RunDocument, number: int) -> int:
    last = last_line(folder.trial(number).metrics)
    return 0 if last is None else int(str(last["step"])) * int(str(found["trials"][number]["recipe"]["batch_size"]))
