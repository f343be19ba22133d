"""What the command line answers to bad input, and how fast it answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.search.conftest import Grow


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("rnu",), 2, "command is 'rnu', but must be one of run, resume"),
        (("rnu",), 2, "did you mean 'run'?"),
        (("studies", "x"), 2, "'x' is given, but must be left out: there is no place for it; see grow studies --help"),
        (("run", "--study", "digits", "--gpus", "2", "--trails", "3"), 2, "--trails is given, but must be an option of this command"),
        (("run", "--study", "digits", "--gpus", "2", "--trails=3"), 2, "did you mean '--trials'?"),
        (("run", "--study", "digits", "--gpus", "2", "--gpus", "3"), 2, "--gpus is given twice, but must be given once"),
        (("show", "one", "b"), 2, "trial is 'b', but must be a whole number; see grow show --help"),
        (("run", "--study", "mnist"), 2, "--gpus is missing, but must be given"),
        (("run", "--study", "mnist", "--gpus"), 2, "--gpus has no value, but must be given one"),
        (("run", "--stduy", "mnist"), 2, "--study is missing, but must be given; did you mean --study instead of --stduy?"),
        (("show",), 2, "RUN is missing, but must be given; see grow show --help"),
        (("run", "--study", "mnits", "--gpus", "2"), 2, "study is 'mnits'"),
        (("run", "--study", "absent.py:tiny", "--gpus", "2"), 2, "absent.py"),
        (("run", "--study", "digits", "--gpus", "0"), 2, "gpus is 0, but must be at least 1"),
        (("run", "--study", "digits", "--gpus", "two"), 2, "gpus is 'two', but must be a whole number; see grow run --help"),
        (("run", "--study", "digits", "--gpus", "2", "--tolerance", "x"), 2, "tolerance is 'x', but must be a number; see"),
        (
            ("run", "--study", "digits", "--gpus", "2", "--device", "gpu"),
            2,
            "device is 'gpu', but must be one of auto, cuda, cpu; did you mean 'cpu'?",
        ),
        (("run", "--study", "digits", "--gpus", "2", "--trials", "1"), 2, "trials is 1, but must be at least 2"),
        (("run", "--study", "digits", "--gpus", "2", "--tolerance", "-1"), 2, "tolerance is -1.0"),
        (("run", "--study", "digits", "--gpus", "2", "--tolerance", "nan"), 2, "tolerance is nan"),
        (("run", "--study", "digits", "--gpus", "2", "--set", "density=1.3"), 2, "density is 1.3, but must be in (0, 1]"),
        (("run", "--study", "digits", "--gpus", "2", "--set", "densty=0.1"), 2, "did you mean 'density'"),
        (("run", "--study", "digits", "--gpus", "2", "--name", "../up"), 2, "name is '../up'"),
        (("run", "--study", "digits", "--gpus", "2", "--hardware", "pcie-2", "--throughput", "measured"), 2, "throughput is measured"),
        (("profile", "--hardware", "nowhere"), 2, "hardware is 'nowhere', but must be a file"),
        (("profile", "--hardware", "pcie-2", "--picture", "picture.png"), 2, "picture is 'picture.png', but must end in .html"),
        (("profile", "--gpus", "0"), 2, "gpus is 0, but must be at least 1; ask for as many with --gpus"),
        (("profile", "--hardware", "pcie-2", "--picture", "/proc/picture.html"), 2, "picture is '/proc/picture.html'"),
        (("run", "--study", "digits", "--gpus", "2", "--runs-dir", "/proc/runs"), 2, "runs_dir is '/proc/runs'"),
        (("resume", "nothing"), 4, "run is 'nothing'"),
        (("show", "nothing"), 4, "run is 'nothing'"),
        (("best", "nothing"), 4, "run is 'nothing'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    arguments: tuple[str, ...], code: int, message: str, grow: Grow, tmp_path: Path
) -> None:
    done = grow(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--study", "digits", "--gpus", "65"), "gpus is 65, but must be at most 64"),
        (("--study", "digits", "--gpus", "1", "--set", "devices=2"), "devices is 2, but must be at most"),
        (("--study", "digits", "--gpus", "2", "--set", "compile=true"), "compile is True, but must be False where trials have up to 2"),
        (("--study", "digits", "--gpus", "2", "--network", "mlp-64x3"), "did you mean 'mlp-64x2'"),
        (("--study", "digits", "--gpus", "2", "--set", "batch_size=100000"), "batch_size is 100000"),
        (("--study", "digits", "--gpus", "65", "--runs-dir", "a/b/c"), "gpus is 65, but must be at most 64"),
        (("--study", "digits", "--gpus", "2", "--hardware", "absent.json"), "hardware is 'absent.json', but must be a file"),
        (("--study", "digits", "--gpus", "9", "--hardware", "nvlink-8"), "gpus is 9, but must be in 1..8"),
    ],
)
def test_what_preparation_refuses_leaves_nothing_behind(arguments: tuple[str, ...], message: str, grow: Grow, tmp_path: Path) -> None:
    done = grow("run", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_traced_is_named(grow: Grow, tiny: str, tmp_path: Path) -> None:
    study = tmp_path / "own.py"
    study.write_text(study.read_text().replace("nn.ReLU()", "nn.Unflatten(1, (1, 4, 4)), nn.PixelShuffle(1), nn.Flatten()"))
    done = grow("run", "--study", tiny, "--gpus", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "PixelShuffle" in done.stderr
    assert list(tmp_path.iterdir()) == [study]


@pytest.mark.parametrize("content", [None, "", "{}", '{"schema_version": 2}', '{"schema_version": 1, "run": 3}'])
def test_a_damaged_run_ends_with_4(content: str | None, grow: Grow, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "broken"
    run.mkdir(parents=True)
    (run / "study.journal").touch()  # which tells it from any other folder
    if content is not None:
        (run / "run.json").write_text(content)
    for command in ("show", "resume", "best"):
        done = grow(command, "broken", cwd=tmp_path)
        assert done.returncode == 4
        assert "run.json" in done.stderr
        assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(grow: Grow, tmp_path: Path) -> None:
    assert "Traceback" in grow("show", "nothing", "--debug", cwd=tmp_path).stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['grow', '--help']; from search.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'optuna', 'pandas', 'numpy', 'scipy', 'numba'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "grow run --study mnist --gpus 2" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_studies_and_runs_are_listed(grow: Grow, tmp_path: Path) -> None:
    assert "mlp-1024x3" in grow("studies", cwd=tmp_path).stdout
    assert "no runs" in grow("runs", cwd=tmp_path).stdout
