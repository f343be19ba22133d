"""A run in Optuna's dashboard: what it shows is a copy, and only this machine can see it."""

import json
import shutil
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from search import load_run
from search.dashboard import Copy, served
from search.errors import ConfigurationError, RunNotFoundError
from search.storage import open_study, read_trials
from tests.search.test_run import contents

Finished = tuple[Path, dict[str, Any], str]


def fetched(address: str, method: str = "GET", **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, method=method, headers=headers), timeout=30) as answer:
        return bytes(answer.read())


def test_the_dashboard_shows_the_run_and_its_pictures_and_leaves_it_as_it_is(digits: Finished) -> None:
    folder, found, _ = digits
    before = contents(folder)
    with served(load_run(folder), port=0) as (address, copy):
        assert address.startswith("http://127.0.0.1:")
        (study,) = json.loads(fetched(f"{address}/api/studies"))["study_summaries"]
        shown = json.loads(fetched(f"{address}/api/studies/{study['study_id']}"))
        assert len(shown["trials"]) == len(found["trials"])
        artifacts = {artifact["filename"]: artifact for artifact in shown["artifacts"]}
        expected = {f"trial-{number}-{what}.svg" for number in found["pareto"] for what in ("before", "after")}
        assert artifacts.keys() == {"front.svg", "report.html"} | expected
        assert artifacts["front.svg"]["mimetype"] == "image/svg+xml"
        picture = fetched(f"{address}/artifacts/{study['study_id']}/{artifacts['front.svg']['artifact_id']}")
        assert picture.startswith(b"<svg")
        fetched(f"{address}/api/studies/{study['study_id']}", method="DELETE")  # of the copy
        assert not copy.storage.get_all_studies()
        with pytest.raises(HTTPError, match="403"):
            fetched(f"{address}/api/studies", Host="elsewhere.example")
        port = int(address.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="must be free"), served(load_run(folder), port=port):
            pass
    assert contents(folder) == before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nothing is left behind


def test_the_copy_follows_a_run_at_work_line_by_line(digits: Finished, tmp_path: Path) -> None:
    journal = tmp_path / "run" / "study.journal"
    journal.parent.mkdir()
    lines = (digits[0] / "study.journal").read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]) + lines[-3][:10])  # a line is being written
    (tmp_path / "copy").mkdir()
    copy = Copy(journal, tmp_path / "copy")
    journal.write_bytes(b"".join(lines))
    assert copy.follow() == 3
    assert copy.follow() == 0
    theirs, ours = copy.storage.get_all_trials(copy.storage.get_all_studies()[0]._study_id), read_trials(journal)
    assert [trial.values for trial in theirs] == [trial.values for trial in ours]
    with pytest.raises(RunNotFoundError, match=r"study\.journal is missing"):
        Copy(tmp_path / "absent" / "study.journal", tmp_path / "copy")


def test_the_runs_own_journal_can_still_be_opened_after_the_copy_was_written_to(digits: Finished, tmp_path: Path) -> None:
    shutil.copy(digits[0] / "study.journal", tmp_path / "study.journal")
    (tmp_path / "copy").mkdir()
    copy = Copy(tmp_path / "study.journal", tmp_path / "copy")
    copy.storage.set_study_user_attr(copy.storage.get_all_studies()[0]._study_id, "note", "of the dashboard")
    study = open_study(tmp_path / "study.journal", digits[1]["run"])
    assert "note" not in study.user_attrs
    assert len(study.trials) == len(digits[1]["trials"])
