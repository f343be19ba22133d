from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from search.definition import STANDARD_PARAMETERS, StudyDefinition, StudyReference, check_reference, installed
from search.space import Choice, Float, Integer, Range
from studies.digits import digits


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("from studies.digits import digits as mine\nnumber = 3\n")
    return path


def test_the_built_in_studies_and_networks_are_installed_like_a_strangers() -> None:
    found = installed()
    assert found["digits"] is digits
    assert list(found["mnist"].networks) == ["mlp-1024x3", "lenet-300-100", "lenet-5", "convnet-64-128-256"]
    assert digits.network("lenet-5")().state_dict().keys() == found["mnist"].network("lenet-5")().state_dict().keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mnits", "study is 'mnits', but must be .*did you mean 'mnist'"),
        ("nowhere.py:mine", "must name a file that exists"),
        ("{file}", "must be path.py:NAME"),
        ("{file}:not-a-name", "must be path.py:NAME"),
    ],
)
def test_a_study_that_is_not_there_is_refused_before_any_code_runs(study_file: Path, text: str, message: str) -> None:
    study_file.write_text("raise SystemExit")
    with pytest.raises(ValueError, match=message):
        check_reference(text.format(file=study_file))


def test_a_file_is_found_from_wherever_one_stands(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference = check_reference("mine.py:mine")
    assert reference.text == f"{study_file}:mine"
    monkeypatch.chdir("/")
    assert reference.load() is digits
    assert check_reference(reference.text) == reference


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "mien", "but must be a StudyDefinition in that file .*did you mean 'mine'"),
        (None, "number", "but must be a StudyDefinition in that file"),
        ("1 / 0", "mine", "raised ZeroDivisionError: division by zero"),
        ("def (", "mine", "raised SyntaxError"),
    ],
)
def test_a_file_that_does_not_hold_the_study_is_refused(study_file: Path, code: str | None, name: str, message: str) -> None:
    if code is not None:
        study_file.write_text(code)
    with pytest.raises(ValueError, match=message):
        check_reference(f"{study_file}:{name}").load()


def test_a_study_stays_what_it_was_when_it_was_named(study_file: Path) -> None:
    reference = check_reference(f"{study_file}:mine")
    study_file.write_text("raise SystemExit")
    assert reference.load() is digits
    study_file.unlink()
    assert reference.load() is digits


def test_what_was_never_named_is_not_run(study_file: Path) -> None:
    study_file.write_text("raise SystemExit")
    with pytest.raises(ValueError, match="is not yours, but must be a file that you have named"):
        StudyReference(f"{study_file}:mine", hashlib.sha256(study_file.read_bytes()).hexdigest()).load()
    with pytest.raises(ValueError, match="'gone'"):
        StudyReference("gone").load()


def test_a_network_that_is_not_there_is_refused() -> None:
    assert digits.network_name(None) == "mlp-64x2"
    with pytest.raises(ValueError, match=r"network is 'lenet5', but must be .*did you mean 'lenet-5'"):
        digits.network("lenet5")


def _with(parameters: Mapping[str, Range], settings: Mapping[str, object], *guesses: Mapping[str, object]) -> StudyDefinition:
    return replace(digits, parameters=parameters, settings=settings, first_guesses=guesses)


def test_what_a_study_neither_searches_nor_sets_is_searched_as_usual() -> None:
    study = _with({"density": Float(0.1, 0.2), "steps": Integer(10, 20)}, {"initial": "erk"})
    assert study.searched.keys() == STANDARD_PARAMETERS.keys() - {"initial"} | {"steps"}
    assert study.searched["density"] == Float(0.1, 0.2)


@pytest.mark.parametrize(
    ("parameters", "settings", "guess", "message"),
    [
        ({"densty": Float(0.1, 0.2)}, {}, {}, "'densty'.*did you mean 'density'"),
        ({"density": Float(0.1, 1.5)}, {}, {}, r"density is 1.5, but must be in \(0, 1\]"),
        ({"initial": Choice(("erk", "arc"))}, {}, {}, "initial is 'arc'"),
        ({}, {"seed": 3}, {}, "'seed'"),
        ({}, {"steps": 0}, {}, "steps is 0"),
        ({"steps": Integer(1, 2)}, {"steps": 1}, {}, "searched and set"),
        ({}, {}, {"steps": 3}, "first guess has steps"),
        ({}, {}, {"density": 0.9}, "density is 0.9 in a first guess"),
    ],
)
def test_a_study_that_contradicts_itself_or_the_recipe_is_refused(
    parameters: Mapping[str, Range], settings: Mapping[str, object], guess: Mapping[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _with(parameters, settings, guess)


def test_a_study_without_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="networks of the study digits is empty"):
        replace(digits, networks={})


def test_what_the_user_sets_is_no_longer_searched_or_guessed() -> None:
    study = _with({"steps": Integer(10, 20)}, {"threads": 1}, {"density": 0.3, "steps": 10}).fixing(
        {"density": 0.7, "steps": 5, "threads": 2}
    )
    assert study.settings == {"density": 0.7, "steps": 5, "threads": 2}
    assert not {"density", "steps"} & study.searched.keys()
    assert study.guesses(1) == [{"devices": 1}]
    with pytest.raises(ValueError, match="density is 7"):
        study.fixing({"density": 7.0})


def test_guesses_use_the_devices_there_are_and_repeat_nothing() -> None:
    units, data = {"density": 0.3, "strategy": "units", "price": 8.0}, {"density": 0.3, "strategy": "data"}
    study = _with({}, {}, units, data, units | {"devices": 2})
    assert study.guesses(1) == [{"density": 0.3, "devices": 1}]
    assert study.guesses(2) == [units | {"devices": 2}, data | {"devices": 2}]
    assert study.guesses(4) == [units | {"devices": 4}, data | {"devices": 4}, units | {"devices": 2}]
