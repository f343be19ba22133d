"""What the README shows is what the project does."""

import doctest
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_python_example_runs() -> None:
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted >= 5
    assert result.failed == 0


def test_the_study_shown_is_the_one_that_is_tested() -> None:
    study = (README.parent / "tests" / "studies" / "stranger.py").read_text()
    assert study.rstrip() in README.read_text()
    assert len(study.splitlines()) <= 20
