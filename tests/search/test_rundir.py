import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from search.errors import ConfigurationError, RunLockedError, RunNotFoundError
from search.files import append_line, cut_torn_line, last_line, locked, read_json, read_lines, write_json
from search.owner import Owner, RunLock, owner
from search.rundir import RunFolder, create_run_folder, find_run, run_folders


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = create_run_folder(tmp_path, "one", "")
    write_json(folder.record, {})
    return folder


def test_a_file_that_cannot_be_written_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": float("nan")})
    assert read_json(path) == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunNotFoundError, match=r"run\.json"):
        read_json(tmp_path / "run.json")


def test_lines_survive_a_torn_end_wherever_it_is_torn(tmp_path: Path) -> None:
    whole = b'{"step":1}\n{"step":2}\n'
    for torn in range(1, len(b'{"step":3}')):
        path = tmp_path / f"{torn}.jsonl"
        path.write_bytes(whole + b'{"step":3}'[:torn])
        assert [line["step"] for line in read_lines(path)] == [1, 2]
        assert last_line(path) == {"step": 2}
        append_line(path, {"step": 4})
        assert path.read_bytes() == whole + b'{"step":4}\n'


def test_cutting_says_how_much_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"one\ntwo")
    assert cut_torn_line(path) == 3
    assert cut_torn_line(path) == 0
    assert path.read_bytes() == b"one\n"
    assert cut_torn_line(tmp_path / "absent") == 0


@pytest.mark.parametrize("name", ["../escape", "/abs", ".", "..", "", "a/b", "-flag", "x" * 101])
def test_a_name_cannot_lead_out_of_the_runs_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="name is"):
        create_run_folder(tmp_path / "runs", name, "")
    assert not (tmp_path / "runs").exists()


def test_unnamed_runs_are_numbered(tmp_path: Path) -> None:
    assert [create_run_folder(tmp_path, None, "mnist").name for _ in range(3)] == ["mnist-1", "mnist-2", "mnist-3"]


def test_a_taken_name_is_an_error_with_the_remedy(run: RunFolder) -> None:
    with pytest.raises(ConfigurationError, match="grow resume one"):
        create_run_folder(run.path.parent, "one", "")


def test_a_run_that_is_killed_while_it_is_made_is_none_and_its_name_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from search.files import write_json; from search.rundir import create_run_folder\n"
        "def fill(folder, name): write_json(folder.record, {}); os.kill(os.getpid(), signal.SIGKILL)\n"
        "create_run_folder(Path(sys.argv[1]), 'one', '', fill)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob(".one.*/run.json"))) > 0
        assert run_folders(tmp_path) == ()
        with pytest.raises(RunNotFoundError, match="must be the name of a run"):
            find_run("one", tmp_path)
    made = create_run_folder(tmp_path, "one", "", lambda folder, name: write_json(folder.record, {"run": name}))
    assert run_folders(tmp_path) == (made,)
    assert read_json(made.record) == {"run": "one"}


def test_of_two_processes_that_make_a_run_of_one_name_one_is_refused(tmp_path: Path) -> None:
    def meanwhile(folder: RunFolder, name: str) -> None:
        write_json(tmp_path / name / "run.json", {"by": "the other"})

    with pytest.raises(ConfigurationError, match="grow resume one"):
        create_run_folder(tmp_path, "one", "", meanwhile)
    assert read_json(tmp_path / "one" / "run.json") == {"by": "the other"}
    assert (
        create_run_folder(tmp_path, None, "one", lambda folder, name: None if name == "one-2" else meanwhile(folder, name)).name == "one-2"
    )
    assert not list(tmp_path.glob(".*"))


def test_a_runs_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(ConfigurationError, match="runs_dir is"):
            create_run_folder(place, None, "mnist")


def test_a_run_is_found_by_name_and_by_path_and_suggested_when_misspelt(run: RunFolder) -> None:
    assert find_run("one", run.path.parent).path == run.path
    assert find_run(str(run.path), Path("elsewhere")).path == run.path
    with pytest.raises(RunNotFoundError, match="did you mean 'one'"):
        find_run("oen", run.path.parent)


def test_a_live_owner_keeps_others_out_and_lets_go(run: RunFolder) -> None:
    with RunLock(run) as lock:
        assert lock.taken_over_from is None
        found = owner(run)
        assert found == Owner.this_process()
        assert found.alive
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
            RunLock(run)
    assert owner(run) is None
    with RunLock(run) as lock:
        assert lock.taken_over_from is None


def test_the_lock_of_a_killed_process_is_taken_over(run: RunFolder) -> None:
    code = (
        "import sys, time; from pathlib import Path; from search.owner import RunLock; from search.rundir import RunFolder;"
        "lock = RunLock(RunFolder(Path(sys.argv[1]))); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RunLockedError):
            RunLock(run)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunLock(run) as lock:
        assert lock.taken_over_from is not None
        assert lock.taken_over_from.pid == holder.pid


def test_an_owner_on_another_host_counts_as_alive_until_the_user_says_otherwise(run: RunFolder) -> None:
    elsewhere = replace(Owner.this_process(), host="elsewhere", boot_id="another")
    write_json(run.lock, asdict(elsewhere))
    with pytest.raises(RunLockedError, match=r"on elsewhere, but must have one owner; .* known to have ended, resume with --take-over"):
        RunLock(run)
    assert owner(run) == elsewhere
    with RunLock(run, take_over=True) as lock:
        assert lock.taken_over_from == elsewhere
        with pytest.raises(RunLockedError, match=r"wait for it or stop it$"):
            RunLock(run, take_over=True)  # one that is seen to be alive never is


def test_a_file_is_locked_against_others_and_where_locks_are_posix_ones_as_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with locked(tmp_path / "recipe.json", wait=True), pytest.raises(BlockingIOError):
        locked(tmp_path / "recipe.json", wait=False)
    locked(tmp_path / "recipe.json", wait=False).close()
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    with locked(tmp_path / "recipe.json", wait=True) as file:
        assert other_process_locks(tmp_path / "recipe.json") == "BlockingIOError"
        assert file.read() == b"{}"
    assert other_process_locks(tmp_path / "recipe.json") == ""


def other_process_locks(path: Path) -> str:
    """What another process is told that asks for a POSIX lock."""
    code = f"""
import fcntl
try:
    fcntl.lockf(open({str(path)!r}, "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    print(type(error).__name__)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_an_owner_of_another_boot_or_another_start_is_dead() -> None:
    me = Owner.this_process()
    assert me.alive
    assert not replace(me, boot_id="another").alive
    assert not replace(me, started=me.started + 1).alive
    assert replace(me, host="another").alive  # cannot be seen from here


def test_a_damaged_lock_file_is_no_owner(run: RunFolder) -> None:
    for content in ("{", json.dumps({"pid": 1}), json.dumps({**asdict(Owner.this_process()), "more": 1})):
        run.lock.write_text(content)
        assert owner(run) is None


def test_a_folder_that_holds_no_part_of_a_run_is_none_and_one_that_lost_its_record_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    with pytest.raises(RunNotFoundError, match="but must be the name of a run"):
        find_run("one", tmp_path / "runs")
    with pytest.raises(RunNotFoundError, match="but must be the name of a run"):
        find_run(str(tmp_path), tmp_path / "runs")
    (tmp_path / "runs" / "one" / "study.journal").touch()
    with pytest.raises(RunNotFoundError, match=r"run 'one' is damaged: .*run\.json is missing"):
        find_run("one", tmp_path / "runs")
