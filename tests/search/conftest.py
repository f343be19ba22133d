import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from hardware.devices import discover
from hardware.sweep import Grid, measure
from search.definition import StudyReference
from search.recipe import Recipe
from tests.search.in_process import Commands

Grow: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

STUDY = """
import torch
from torch import nn

from grow.task import Samples
from search.definition import StudyDefinition
from search.space import Choice

generator = torch.Generator().manual_seed(0)


def samples(count):
    inputs = torch.randn(count, 8, generator=generator)
    return Samples(inputs, (inputs[:, 0] > 0).long())


tiny = StudyDefinition.from_samples(
    "tiny", samples(512), samples(256), samples(256),
    networks={"mlp": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))},
    parameters={"learning_rate": Choice((0.1, 1e30))},
    settings={"steps": 30, "batch_size": 64, "optimizer": "sgd", "initial": "dense", "update_interval": 5},
)
"""


FEW = Grid(
    kernels=("dense", "csr", "compiled"),
    rows=(16, 128),
    columns=(64, 256),
    batches=(64, 128),
    densities=(0.1, 0.3, 0.5),
    conv_rows=(4, 8),
    conv_columns=(25, 50),
    conv_batches=(64, 128),
    wide_columns=100,
    wide_batch=256,
    sizes=(8, 2**12, 2**15, 2**18),
    exchanged_bytes=2**15,
    repeats=6,
    budget_s=0.005,
)
"""About what layers of the study digits are: a machine is known by it in a fifth of the time."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One folder of profiles for the tests in all processes, so that devices are profiled once; none waits for another's devices."""
    profiles, cache = shared(tmp_path_factory) / "profiles", tmp_path_factory.mktemp("cache")
    profiles.mkdir(exist_ok=True)
    (cache / "grow").mkdir()
    (cache / "grow" / "profiles").symlink_to(profiles)
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "NO_COLOR": "1"}


def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one run of the tests have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def commands(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """What gives commands in this process."""
    found = Commands(tmp_path_factory.mktemp("said"), environment)
    yield found
    found.close()


@pytest.fixture
def grow(commands: Commands) -> Grow:
    """The command line, in a folder; in this process, where nothing is to be killed and no start is to be timed."""
    return commands


@pytest.fixture(scope="session")
def digits(commands: Commands, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A finished run of the study digits, made once and only read: its folder, its JSON, and what it said on stderr."""
    folder = shared(tmp_path_factory) / "digits"
    folder.mkdir(exist_ok=True)
    said = folder / "said.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            known = measure(discover("auto", 2).devices, grid=FEW)
            known.save(Path(environment["XDG_CACHE_HOME"]) / "grow" / "profiles" / f"{known.key}.json")
            budget = ("--gpus", "2", "--trials", "4", "--tolerance", "100", "--set", "steps=60")
            done = commands("run", "--study", "digits", *budget, "--json", cwd=folder)
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    stdout, stderr = json.loads(said.read_text())
    return folder / "runs" / "digits-1", json.loads(stdout), stderr


def digits_recipe(**settings: Any) -> Recipe:
    """The recipe of a searched trial of the study digits."""
    source = StudyReference("digits").load().data(None)
    folder = None if source.folder is None else str(source.folder)
    return Recipe(study="digits", network="mlp-64x2", data_dir=folder, data_sha256=source.sha256, number=2, role="search", **settings)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A stranger's study, in a file."""
    (tmp_path / "own.py").write_text(STUDY)
    return "own.py:tiny"
