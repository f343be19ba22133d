"""Files that somebody else has made: whatever they hold, none of it runs, and none of it leads out of where it belongs."""

import hashlib
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from grow import checkpoint
from grow.network import Network
from hardware.profile import Profile
from search import build
from search.changes import record_code
from search.definition import check_reference
from search.errors import ConfigurationError, RunNotFoundError
from search.files import read_json, read_lines, write_text
from search.options import Options, RunRecord
from search.recipe import Recipe
from search.results import document
from search.run import resume
from search.rundir import RunFolder, create_run_folder, find_run
from search.storage import open_study, read_trials, repair
from tests.search.conftest import STUDY, digits_recipe

NESTED = "[" * 100_000 + "]" * 100_000


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, harm: Path) -> None:
        self.harm = harm

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.harm),)


@pytest.fixture
def harm(tmp_path: Path) -> Path:
    """What a hostile file makes if it runs."""
    return tmp_path / "harm"


def saved(folder: Path) -> Path:
    """A checkpoint of a small network."""
    checkpoint.save(folder, Network(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 2)))
    return folder


def test_a_pickle_for_tensors_is_no_checkpoint_even_with_its_hash(tmp_path: Path, harm: Path) -> None:
    folder = saved(tmp_path / "checkpoint" / "00000010")
    data = pickle.dumps(Payload(harm))
    (folder / "tensors.safetensors").write_bytes(data)
    meta = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**meta, "sha256": hashlib.sha256(data).hexdigest()}))
    found, damaged = checkpoint.last_whole(folder.parent)
    assert found is None
    assert "no whole checkpoint" in str(damaged[0])
    assert not harm.exists()
    pickle.loads(data)
    assert harm.exists()  # it would have


@pytest.mark.parametrize("content", [NESTED, "[]", "null", "1", '{"sha256": []}', '{"sha256": "' + "0" * 64 + '"}', "\ud800"])
def test_a_checkpoint_of_other_json_is_damaged_and_the_one_before_is_used(content: str, tmp_path: Path) -> None:
    first, last = saved(tmp_path / "00000010"), saved(tmp_path / "00000020")
    (last / "checkpoint.json").write_bytes(content.encode(errors="surrogatepass"))
    found, damaged = checkpoint.last_whole(tmp_path)
    assert found is not None
    assert found.meta == checkpoint.read(first).meta
    assert [str(last) in str(error) for error in damaged] == [True]


@pytest.mark.parametrize(
    "line",
    [
        NESTED,
        "null",
        "[]",
        "1e999",
        '{"op_code": 99}',
        '{"op_code": 0}',
        '{"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": "today"}',
        '{"op_code": 4, "worker_id": "x", "study_id": 0, "state": 1, "params": {"a": 1},'
        ' "distributions": {"a": "{\\"name\\": \\"os.system\\", \\"attributes\\": {\\"command\\": \\"false\\"}}"}}',
    ],
)
def test_a_journal_of_odd_lines_is_an_error_that_names_it(line: str, tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    open_study(journal, "run")
    with open(journal, "a") as file:
        file.write(line + "\n")
    for read in (read_trials, lambda path: repair(path) or open_study(path, "run")):
        with pytest.raises(RunNotFoundError, match=r"study\.journal"):
            read(journal)


def test_a_line_of_a_trial_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    open_study(journal, "run")
    with open(journal, "a") as file:
        file.write('{"op_code": 5, "worker_id": "x", "trial_id": "__class__", "param_name": "a"}\n')
        file.write('{"op_code": 6, "worker_id": "x", "trial_id": 7, "state": 1, "values": [[]]}\n')
    assert read_trials(journal) == []


@pytest.mark.parametrize("content", [NESTED, '{"a": ' * 50_000 + "1" + "}" * 50_000, '{"a": 1' + "0" * 5000 + "}", '{"a": NaN'])
def test_json_that_is_made_to_choke_on_is_damaged(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(RunNotFoundError, match=r"run\.json is unreadable"):
        read_json(path)
    (tmp_path / "lines").write_text(content + '\n{"step": 1}\n')
    assert read_lines(tmp_path / "lines") == [{"step": 1}]
    with pytest.raises(ValueError, match="profile"):
        Profile.load(path)
    (tmp_path / "config.toml").write_text("a = " + NESTED)
    with pytest.raises(RunNotFoundError, match=r"config\.toml is unreadable"):
        Options.read(RunFolder(tmp_path))


@pytest.mark.parametrize("name", ["../../escape", "/etc", "0/../../escape"])
def test_no_name_in_a_file_leads_out_of_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="number is"):
        Recipe.from_json({**digits_recipe().to_json(), "number": name})
    with pytest.raises(ConfigurationError, match="network is"):
        build.material(Recipe.from_json({**digits_recipe().to_json(), "network": name})).definition.network_name(name)
    with pytest.raises(RunNotFoundError):
        find_run(name, tmp_path / "runs")
    folder = create_run_folder(tmp_path / "runs", "one", "")
    options = Options(study="digits", gpus=1)
    options.write(folder)
    RunRecord(run=name, created_at="", versions={}).write(folder)
    assert document(folder)["trials"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def hostile_study(folder: Path, harm: Path) -> tuple[str, str]:
    """A study in a file that does harm when it is loaded, as a stranger's JSON would name it, with its true hash."""
    path = folder / "study.py"
    path.write_text(STUDY + f"\nimport os\nos.mkdir({str(harm)!r})\n")
    return f"{path}:tiny", hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_recipe_cannot_name_code_that_the_user_has_not_named(tmp_path: Path, harm: Path) -> None:
    study, sha256 = hostile_study(tmp_path, harm)
    values = {**digits_recipe().to_json(), "study": study, "study_sha256": sha256, "network": "mlp"}
    with pytest.raises(ConfigurationError, match="is not yours, but must be a file that you have named"):
        build.material(Recipe.from_json(values))
    assert not harm.exists()
    check_reference(study).load()  # as the user does it
    assert harm.exists()


def test_a_strangers_run_is_not_resumed_before_its_code_is_allowed(tmp_path: Path, harm: Path) -> None:
    study, sha256 = hostile_study(tmp_path, harm)
    folder = create_run_folder(tmp_path / "runs", "theirs", "")
    options = Options(study=study, gpus=1)
    options.write(folder)
    record_code(folder, options)
    RunRecord(run="theirs", created_at="", versions={}, study_sha256=sha256, options=asdict(options)).write(folder)
    write_text(folder.path / "study" / f"{sha256}.py", Path(study.partition(":")[0]).read_text())
    with pytest.raises(ConfigurationError, match="add --allow-config-change"):
        resume(folder)
    assert not harm.exists()
