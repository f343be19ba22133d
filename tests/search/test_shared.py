"""Several processes on one run, in real processes: a budget that is a total, no trial told twice, and what one leaves the others finish."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import optuna
import psutil
import psycopg
import pymysql
import pytest

from search.errors import ConfigurationError
from search.files import read_json, read_lines
from search.options import Options, RunRecord
from search.run import resume
from search.rundir import RunFolder
from search.shared import follow
from search.storage import Proposal, add_running, made_study, read_trials, tell_complete, tell_failed, tell_infeasible
from search.storage_url import StorageUrl, close, storage_url
from tests.search.conftest import Grow
from tests.search.grpc_proxy import proxied
from tests.search.mariadb import mariadb
from tests.search.postgres import PASSWORD, postgres
from tests.search.test_interruption import STUDY, started, until

TRIALS = 3
LEASE_S = 2.0


def circle(folder: Path, name: str, *options: str) -> list[str]:
    (folder / "circle.py").write_text(STUDY)
    fixed = ["--gpus", "1", "--trials", str(TRIALS), "--tolerance", "100", "--hardware", "pcie-2", "--name", name]
    return ["run", "--study", "circle.py:circle", *fixed, *options]


@pytest.mark.slow
def test_a_process_that_sleeps_loses_its_trial_which_another_finishes(grow: Grow, environment: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "shared"
    options = circle(tmp_path, "shared", "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--lease-s", str(LEASE_S))
    with started([*options, "--set", "steps=60"], environment, tmp_path) as sleeper:
        until(lambda: any((run / "trials" / "0000" / "checkpoint").glob("[0-9]*[0-9]")), sleeper)
        children = psutil.Process(sleeper.pid).children()
        sleeper.send_signal(signal.SIGSTOP)  # its pid lives on, so that nothing but the end of its lease frees what it has
        for child in children:
            child.kill()
        waking = threading.Thread(target=_wake, args=(sleeper, run), daemon=True)
        waking.start()
        joined = grow("resume", "shared", "--json", cwd=tmp_path)
        _, stderr = sleeper.communicate(timeout=60)
    assert (joined.returncode, sleeper.returncode) == (0, 0), joined.stderr + stderr.decode()
    assert "trial 0 has been taken over by another process, and is stopped here" in stderr.decode()
    assert_shared(run, json.loads(joined.stdout))
    steps = [int(str(line["step"])) for line in read_lines(run / "trials" / "0000" / "metrics.jsonl")]
    assert steps == sorted(set(steps))  # from its checkpoint, and no step twice


def _wake(sleeper: subprocess.Popen[bytes], run: Path) -> None:
    """Let a process go on once another has begun what it had."""
    until(lambda: _begun(run).count(0) == 2, sleeper)
    sleeper.send_signal(signal.SIGCONT)


def _begun(run: Path) -> list[object]:
    return [line["number"] for line in read_lines(run / "events.jsonl") if line["event"] == "trial_started"]


def assert_shared(run: Path, found: dict[str, object]) -> None:
    """That the trials of the budget were told, none twice, and that the folder's journal says what the storage says."""
    assert found["state"] == "complete"
    told = [line["number"] for line in read_lines(run / "events.jsonl") if line["event"] == "trial_told"]
    assert len(set(told)) == len(told)  # one that is killed as it tells may leave no event
    trials = read_trials(run / "study.journal")
    assert [(trial.number, trial.state.name) for trial in trials] == [(number, "COMPLETE") for number in range(TRIALS)]
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials[2:]}) == TRIALS - 2  # no draw was made twice
    assert not list((run / "owners").iterdir())


def cut_off(kind: str, url: str) -> None:
    """End all connections of a database server's clients, as a restart does."""
    {"postgresql": _cut_off_postgres, "mariadb": _cut_off_mariadb}[kind](url)


def _cut_off_mariadb(url: str) -> None:
    place, secret = urlsplit(url), PASSWORD.replace("%40", "@")
    socket = parse_qs(place.query)["unix_socket"][0]
    with pymysql.connect(user="grow", password=secret, unix_socket=socket) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'grow' AND id <> connection_id()")
        for (number,) in cursor.fetchall():
            with suppress(pymysql.err.OperationalError):  # it has gone by itself
                cursor.execute("KILL CONNECTION %s", (number,))


def _cut_off_postgres(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'grow'")


@contextmanager
def served(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a storage that processes can share."""
    with postgres() if kind == "postgresql" else mariadb() if kind == "mariadb" else _proxy(folder) as url:
        yield url


@contextmanager
def _proxy(folder: Path) -> Iterator[str]:
    database = optuna.storages.RDBStorage(f"sqlite:///{folder / 'proxied.db'}")
    with proxied(database) as url:
        yield url
    database.engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "grpc"])
def test_one_of_two_processes_is_killed_and_the_other_finishes(kind: str, grow: Grow, environment: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "shared"
    with served(kind, tmp_path) as url:
        given = {**environment, "GROW_STORAGE": url}
        options = [*circle(tmp_path, "shared", "--lease-s", str(LEASE_S)), "--set", "steps=200"]
        with started(options, given, tmp_path) as first:
            until(lambda: any((run / "trials" / "0000" / "checkpoint").glob("[0-9]*[0-9]")), first)
            with started(["resume", "shared", "--json"], given, tmp_path) as second:
                until(lambda: len(psutil.Process(second.pid).children()) > 1, second)  # it has a worker beside its nursery
                if kind != "grpc":
                    cut_off(kind, url)
                first.kill()
                stdout, stderr = second.communicate(timeout=200)
        assert second.returncode == 0, stderr.decode()
        database = StorageUrl(url).open()
        name = str(read_json(run / "run.json")["study_name"])
        theirs = optuna.load_study(study_name=name, storage=database).trials
        ours = read_trials(run / "study.journal")
        assert [(t.number, t.state, t.values, t.params, t.constraints) for t in theirs] == [
            (t.number, t.state, t.values, t.params, t.constraints) for t in ours
        ]
        close(database)
    assert_shared(run, json.loads(stdout))
    secret = PASSWORD.replace("%40", "@").encode()
    for path in run.rglob("*"):
        assert not path.is_file() or not any(word in path.read_bytes() for word in (secret, PASSWORD.encode())), path
    assert not any(word in stdout + stderr for word in (secret, PASSWORD.encode()))
    # What the processes found one after the other is what one finds alone.
    alone = grow(*circle(tmp_path, "alone"), "--set", "steps=200", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    for number in (0, 1):
        path = Path("trials") / f"{number:04d}" / "result.json"
        assert (run / path).read_bytes() == (tmp_path / "runs" / "alone" / path).read_bytes()
    # Where the storage has gone, nothing can go on, but all can still be looked at.
    assert grow("show", "shared", cwd=tmp_path).returncode == 0
    gone = grow("resume", "shared", "--add", "1", cwd=tmp_path)
    assert gone.returncode in (1, 2)
    assert "storage is" in gone.stderr


def test_the_folders_journal_says_what_the_storage_says() -> None:
    storage, copies = optuna.storages.InMemoryStorage(), optuna.storages.InMemoryStorage()
    study, copy = made_study(storage, "run"), made_study(copies, "run")
    distributions = {"density": optuna.distributions.FloatDistribution(0.1, 1.0)}
    for number in range(5):
        add_running(study, "search", Proposal({"density": 0.1 + number / 10}, distributions, {"NSGAIISampler:generation": number}))
        if number % 2:
            follow(study, copy)
    tell_complete(study, 1, 0.9, 10.0, 0.8, memory=0.5)
    tell_failed(study, 0, "loss is nan")
    follow(study, copy)
    tell_infeasible(study, 3, "memory ran out")
    follow(study, copy)
    follow(study, copy)
    assert [(t.state, t.values, t.params, t.user_attrs, t.system_attrs) for t in copy.trials] == [
        (t.state, t.values, t.params, t.user_attrs, t.system_attrs) for t in study.trials
    ]


def test_a_trial_that_another_process_has_entered_first_has_another_number() -> None:
    study = made_study(optuna.storages.InMemoryStorage(), "run")
    assert [add_running(study, "search") for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:geheim@host:5432/runs", "postgresql://me:***@host:5432/runs"),
        ("mysql+pymysql://me:a%40b@host/runs?charset=utf8", "mysql+pymysql://me:***@host/runs?charset=utf8"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
        ("grpc://host:13000", "grpc://host:13000"),
    ],
)
def test_a_password_is_never_shown(text: str, shown: str) -> None:
    url = StorageUrl(text)
    assert str(url) == shown
    assert "geheim" not in repr(url)
    assert url.complete
    assert StorageUrl(shown).complete == (shown == text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("postgres://host/runs", "did you mean 'postgresql'"),
        ("runs.db", "but must be a URL that begins with"),
        ("grpc://host", "must name host and port"),
        ("postgresql://host:port/runs", "a port or host that is none"),
        ("postgresql://host/runs?password=geheim", "before the host"),
    ],
)
def test_what_is_no_storage_is_refused_without_repeating_its_secrets(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        StorageUrl(text)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--storage", "postgresql+absent://me:geheim@host/runs"), 2, "growprune[storage]"),
        (
            ("--storage", "postgresql://me:geheim@127.0.0.1:1/runs"),
            1,
            "storage is postgresql://me:***@127.0.0.1:1/runs, but must be a server",
        ),
        (("--lease-s", "0.5"), 2, "lease_s is 0.5, but must be at least 1 s; choose another with --lease-s"),
    ],
)
def test_a_storage_that_does_not_answer_leaves_no_run(
    options: tuple[str, ...], code: int, message: str, grow: Grow, tmp_path: Path
) -> None:
    done = grow("run", "--study", "digits", "--gpus", "1", *options, cwd=tmp_path)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert "geheim" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("storage", "given", "message"),
    [
        (None, "grpc://host:1", "must not be given: the run keeps its trials in its own folder"),
        ("postgresql://me:***@host/runs", None, "but must have its password; give it with --storage, or better by GROW_STORAGE"),
    ],
)
def test_a_run_is_joined_with_the_storage_that_it_has(storage: str | None, given: str | None, message: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    Options(study="digits", gpus=1, storage=storage).write(folder)
    RunRecord(run="run", created_at="", versions={}).write(folder)
    with pytest.raises(ConfigurationError, match=message):
        resume(folder, storage=storage_url(given))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "run.json"]
