"""What is seen of a run on a terminal, which is a real one here (a pseudo-terminal), and elsewhere."""

import os
import pty
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from search.files import append_line, write_json
from search.progress import LiveProgress, PlainProgress, ended, open_progress
from search.rundir import RunFolder, create_run_folder

CURSOR_UP = "\x1b[1A"
COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-7](;|m)")
HEADINGS = ("trial", "phase", "step", "density", "accuracy", "steps/s", "time left")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with one trial at work, half-way."""
    folder = create_run_folder(tmp_path, "one", "")
    write_json(folder.trial(3).recipe, {"steps": 100})
    line = {"step": 50, "phase": "growing and pruning", "density": 0.25, "accuracy": 0.875, "steps_per_s": 10.0}
    append_line(folder.trial(3).metrics, line)
    return folder


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """Both ends of a terminal of 100 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield ours, stream
    os.close(ours)


def read(terminal: int) -> str:
    seen = b""
    while select.select([terminal], [], [], 0.1)[0]:
        seen += os.read(terminal, 65536)
    return seen.decode()


def draw(run: RunFolder, terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> str:
    ours, theirs = terminal
    monkeypatch.setattr(sys, "stderr", theirs)  # here, as pytest sets its own between fixtures and test
    with open_progress(12) as view:
        assert isinstance(view, LiveProgress)
        assert view._live.console.no_color == ("NO_COLOR" in os.environ)
        view.tick(run, [3], 2)
        view._next = 0.0
        view.tick(run, [3], 3)
        view.say("trial 2 complete")
        theirs.flush()
        return read(ours)


def test_a_terminal_shows_one_table_that_is_drawn_in_place(
    run: RunFolder, terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = draw(run, terminal, monkeypatch)
    assert "one: 3 of 12 trials done" in seen
    assert all(heading in seen for heading in HEADINGS)
    for cell in ("growing and pruning", "50/100", "25.00 %", "87.50 %", "10", "5 s"):
        assert cell in seen
    assert CURSOR_UP in seen
    assert "trial 2 complete" in seen


def test_once_nothing_trains_any_more_nothing_is_shown_of_it(
    run: RunFolder, terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = terminal
    monkeypatch.setattr(sys, "stderr", theirs)
    with open_progress(12) as view:
        view.tick(run, [3], 2)
        read(ours)
        view.rest()
        read(ours)
        view.say("measuring trial 3")
        with view.aside():
            view.say("alone on the devices")
    theirs.flush()
    seen = read(ours)
    assert "measuring trial 3" in seen
    assert "trials done" not in seen


def test_texts_of_a_run_are_neither_markup_nor_commands_to_the_terminal(
    run: RunFolder, terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = terminal
    append_line(run.trial(3).metrics, {"phase": "[/fc1] on [cuda:0]\x1b[2J"})
    reason = ended(2, "failed", "layer [cuda:0] closing [/fc1] :x: \x1b]0;title\x07\x9b2J")
    with open_progress(12) as view:
        view.say(reason)
    shown = "grow: trial 2 failed: layer [cuda:0] closing [/fc1] :x: \\x1b]0;title\\x07\\x9b2J\n"
    assert capsys.readouterr().err == shown
    monkeypatch.setattr(sys, "stderr", theirs)
    with open_progress(12) as view:
        view.tick(run, [3], 2)
        view.say(reason)
    theirs.flush()
    seen = read(ours)
    assert shown.removeprefix("grow: ").strip() in " ".join(seen.split())
    assert "[/fc1] on [cuda:0]\\x1b[2J" in seen
    assert not any(command in seen for command in ("\x1b[2J", "\x1b]0", "\x9b"))


def test_no_color_is_respected(run: RunFolder, terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(draw(run, terminal, monkeypatch))


def test_the_last_accuracy_stays_while_lines_without_one_follow(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for step, accuracy in ((60, 0.9), (70, None), (80, None)):
        line = {"step": step, "phase": "training", "density": 0.25, "accuracy": accuracy, "steps_per_s": 10.0}
        append_line(run.trial(3).metrics, line)
    append_line(run.trial(4).metrics, {"step": 1, "accuracy": None})
    view = PlainProgress(12)
    view._next = 0.0
    view.tick(run, [3, 4], 2)
    known, unknown = capsys.readouterr().err.splitlines()
    assert "step 80/100, density 25.00 %, accuracy 90.00 %, 10 steps/s, 2 s left" in known
    assert "accuracy -" in unknown


def test_elsewhere_there_are_plain_lines(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress(12) as view:
        assert isinstance(view, PlainProgress)
        view._next = 0.0
        view.tick(run, [3], 2)
        view.say("trial 2 complete")
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert said.splitlines() == [
        "grow: [2/12] trial 3: growing and pruning, step 50/100, density 25.00 %, accuracy 87.50 %, 10 steps/s, 5 s left",
        "grow: trial 2 complete",
    ]
