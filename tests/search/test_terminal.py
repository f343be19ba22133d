"""What a run's texts look like on the terminal: as they were written, whatever is in them."""

import shlex
import sys
from pathlib import Path

import pytest

from search.cli.output import print_csv
from search.errors import DEBUG_VARIABLE, RunError, exit_code_of
from search.report import show, table
from search.rundir import RunFolder, resume_command, show_command
from search.terminal import printable

HOSTILE = ("[/x]", "layer [cuda:0] closing [/fc1]", "[b]bold[/b]", ":no_entry:", "C:\\[a]", "[link=file:///etc]here[/link]")


@pytest.mark.parametrize("text", HOSTILE)
def test_brackets_are_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(text, table(text, ("run", "failure"), [("1", text)], text=("failure",)))
    assert capsys.readouterr().out.count(text) == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J and \x7f", "\\x9b2J and \\x7f"),
        ("100 %\rdone", "100 %\\rdone"),
        ("right \u202e to left", "right \\u202e to left"),
        ("half a pair \ud800", "half a pair \\ud800"),
        ("größer, 漢字, two\nlines\tand a tab", "größer, 漢字, two\nlines\tand a tab"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    heading = text.partition("\n")[0]
    show(text, table(heading, ("value",), [(heading,)]))
    assert capsys.readouterr().out.startswith(shown.partition("\t")[0])


@pytest.mark.parametrize(("tty", "shown"), [(True, "a\\x1b[2Jb"), (False, "a\x1b[2Jb")])
def test_csv_is_to_the_letter_but_on_a_terminal(
    tty: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    print_csv([{"failure": "a\x1b[2Jb"}])
    assert capsys.readouterr().out == f"failure\n{shown}\n"


def test_in_csv_every_number_is_of_its_own_kind_whatever_else_its_column_holds(capsys: pytest.CaptureFixture[str]) -> None:
    print_csv([{"trials": 4, "hypervolume": 5.0, "live": True}, {"trials": None, "hypervolume": None, "live": None}, {"trials": 10**20}])
    assert capsys.readouterr().out == f"trials,hypervolume,live\n4,5.0,True\n,,\n{10**20},,\n"


@pytest.mark.parametrize("debug", ["", "1"])
def test_what_went_wrong_is_told_without_commands_to_the_terminal(
    debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise RunError("trial 3 failed: [/b]\x1b[2J")

    monkeypatch.setenv(DEBUG_VARIABLE, debug)
    assert exit_code_of(command) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "grow: trial 3 failed: [/b]\\x1b[2J"
    assert "\x1b" not in said
    assert ("Traceback" in said) == bool(debug)


def test_commands_that_are_shown_can_be_given() -> None:
    folder = RunFolder(Path("a[b] c/run;1"))
    for command, word in ((show_command(folder), "show"), (resume_command(folder), "resume")):
        assert shlex.split(command) == ["grow", word, "a[b] c/run;1"]
