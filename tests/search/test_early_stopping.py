"""Trials that fall behind end early: the decision as a function, and in runs that are killed."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.early_stopping import (
    OF_ANY_KIND,
    OF_ITS_KIND,
    PER_LOOK,
    RUNGS,
    Ending,
    Peer,
    Reached,
    Yardstick,
    decide,
    looked_at,
    noted,
    read_yardstick,
    rung_steps,
    write_yardstick,
)
from search.early_stopping import reached as reached_at
from search.errors import RunNotFoundError
from search.files import append_line, read_json, read_lines
from search.rundir import RunFolder, TrialFolder
from search.storage import FAILURE, TOLERANCE, read_trials
from tests.search.conftest import STUDY, Grow
from tests.search.test_interruption import kill, started, steps, until

SAMPLES = 100
RUNG = 1
LOWEST = 0.6

reached = st.builds(Reached, st.integers(0, 20).map(lambda n: n / 20), st.integers(1, 9).map(float))
kinds = st.sampled_from(["dense", "erk"])
some = st.lists(st.tuples(kinds, st.booleans(), st.lists(reached, max_size=3), reached), max_size=16).map(
    lambda found: tuple(Peer(n, kind, feasible, dict(enumerate(rungs)), end) for n, (kind, feasible, rungs, end) in enumerate(found))
)


def judged(mine: Reached, kind: str, peers: tuple[Peer, ...]) -> Ending | None:
    return decide(mine, RUNG, kind, Yardstick(peers, LOWEST, SAMPLES, SAMPLES))


@given(reached, kinds, some)
def test_a_trial_goes_on_while_one_course_of_its_kind_leads_to_the_front(mine: Reached, kind: str, peers: tuple[Peer, ...]) -> None:
    seen = [peer for peer in peers if RUNG in peer.reached and peer.reached[RUNG].accuracy < 1]

    def end(peer: Peer) -> tuple[float, float]:
        there = peer.reached[RUNG]
        error = 1 - mine.accuracy - sqrt(mine.accuracy * (1 - mine.accuracy) / SAMPLES)
        left, gained = (1 - peer.ended.accuracy) / (1 - there.accuracy), peer.ended.samples_per_s / there.samples_per_s
        return 1 - max(0.0, error) * left, mine.samples_per_s * gained

    def on_the_front(accuracy: float, rate: float) -> bool:
        ahead = [p for p in peers if p.feasible and p.ended.accuracy >= accuracy and p.ended.samples_per_s >= rate]
        return accuracy >= LOWEST and not ahead

    own, every = ({end(peer) for peer in seen if peer.initial in allowed} for allowed in ({kind}, {"dense", "erk"}))
    ends = own if len(own) >= OF_ITS_KIND else every
    if mine.accuracy < 1 and len(ends) >= OF_ITS_KIND:
        assert (judged(mine, kind, peers) is None) == any(on_the_front(*point) for point in ends)
    if len(seen) < OF_ANY_KIND:
        assert judged(mine, kind, peers) is None


@given(reached, kinds, some, st.integers(0, 10).map(lambda n: n / 20), st.integers(0, 5).map(float))
def test_being_better_never_ends_a_trial_and_order_does_not_matter(
    mine: Reached, kind: str, peers: tuple[Peer, ...], more: float, faster: float
) -> None:
    better = Reached(min(1.0, mine.accuracy + more), mine.samples_per_s + faster)
    if judged(mine, kind, peers) is None:
        assert judged(better, kind, peers) is None
        assert judged(mine, kind, peers[::-1]) is None


@given(some)
def test_who_is_where_a_member_of_the_front_was_goes_on(peers: tuple[Peer, ...]) -> None:
    for peer in (peer for peer in peers if peer.feasible and peer.ended.accuracy >= LOWEST and RUNG in peer.reached):
        beaten = any(other.feasible and other.ended.accuracy > peer.ended.accuracy for other in peers)
        if not beaten and 0 < peer.reached[RUNG].accuracy < 1 and peer.ended.accuracy < 1:
            assert judged(peer.reached[RUNG], peer.initial, peers) is None


def peer(number: int, initial: str, rung: Reached, ended: Reached) -> Peer:
    return Peer(number, initial, ended.accuracy >= LOWEST, {0: rung}, ended)


def test_by_hand() -> None:
    """Of its error, a dense network keeps half and gains no throughput, a pruned one keeps 3/4 and doubles it, one that grows keeps 1/5."""
    dense, again = (peer(number, "dense", Reached(0.6, 10.0), Reached(0.8, 10.0)) for number in (0, 1))
    pruned = peer(2, "dense", Reached(0.6, 10.0), Reached(0.7, 20.0))
    growing = peer(3, "minimal", Reached(0.0, 40.0), Reached(0.8, 20.0))
    end = Yardstick((dense, again, pruned, growing), 0.6, 10_000, 10_000)
    told = "no way to the front after 10% of the training: of 3 courses from there, "
    assert decide(Reached(0.4, 10.0), 0, "dense", end) is None  # as the growing one: 0.88, where it is the best
    assert decide(Reached(0.0, 90.0), 0, "dense", end) is None  # at 0.8 by 45 samples/s
    behind = decide(Reached(0.0, 30.0), 0, "dense", end)
    assert behind is not None
    assert behind.reason == told + "2 below the accuracy wanted, 1 behind other trials"
    assert behind.accuracy == pytest.approx(0.8)  # by the course of the growing one
    poor = decide(Reached(0.0, 30.0), 0, "dense", replace(end, lowest_accuracy=0.9))
    assert poor == Ending(told + "3 below the accuracy wanted, 0 behind other trials", behind.accuracy)
    assert decide(Reached(0.0, 1.0), 1, "dense", end) is None  # nobody was seen at that rung
    assert decide(Reached(0.0, 1.0), 0, "dense", replace(end, peers=(dense, again, pruned))) is None  # two courses are too few
    more = tuple(peer(n, "dense", Reached(0.6, 10.0), Reached(0.7 + n / 100, 10.0)) for n in range(4, 4 + OF_ITS_KIND - 2))
    kin = replace(end, peers=(*end.peers, *more))
    assert decide(Reached(0.0, 90.0), 0, "dense", kin) is not None  # its own kind never was so poor and did so well
    assert decide(Reached(0.0, 90.0), 0, "dense", replace(end, peers=kin.peers[:-1])) is None  # too few of its own kind
    assert decide(Reached(0.0, 90.0), 0, "minimal", kin) is None


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_all_rungs_together_look_at_a_quarter_of_what_is_trained_on_at_most(training: int, validation: int) -> None:
    seen = looked_at(training, validation)
    assert 1 <= seen <= validation
    assert seen == 1 or len(RUNGS) * seen <= training / 4
    assert seen == validation or len(RUNGS) * (seen + 1) > training / 4


def test_rungs_are_within_the_training() -> None:
    for count in range(1, 50):
        assert all(0 < step < count and step == round(RUNGS[rung] * count) for step, rung in rung_steps(count).items())


@pytest.mark.parametrize("count", [1, 2, 4, 8, 30])
def test_what_a_short_training_was_is_known_by_rung_though_it_has_not_all(count: int, tmp_path: Path) -> None:
    files, rungs = TrialFolder(tmp_path), rung_steps(count)
    append_line(files.metrics, {"step": 0, "rung": {"accuracy": 0.5, "samples_per_s": 1.0}})  # as an earlier version wrote it
    for step in range(1, count + 1):
        told = {"rung": noted(rungs[step], Reached(step / count, float(step)))} if step in rungs else {}
        append_line(files.metrics, {"step": step, **told})
    assert reached_at(files) == {rung: Reached(step / count, float(step)) for step, rung in rungs.items()}


def test_what_a_trial_is_judged_by_is_fixed_once(tmp_path: Path) -> None:
    files = TrialFolder(tmp_path)
    by = Yardstick((Peer(3, "erk", True, {0: Reached(0.8, 30.0), 2: Reached(0.85, 31.5)}, Reached(0.9, 32.0)),), 0.89, 100, 400)
    assert read_yardstick(files) is None
    write_yardstick(files, by)
    write_yardstick(files, replace(by, samples=50))
    assert read_yardstick(files) == by
    for damaged in ("{", "{}", '{"peers": 1, "lowest_accuracy": 0, "samples": 1, "of": 1}'):
        files.peers.write_text(damaged)
        with pytest.raises(RunNotFoundError, match=r"peers\.json"):
            read_yardstick(files)
        write_yardstick(files, by)
        assert read_yardstick(files) == by


SLOW_LEARNERS = STUDY.replace("(0.1, 1e30)", "(0.1, 1e-5)").replace('"steps": 30', '"steps": 30, "checkpoint_interval": 4')
OPTIONS = ("run", "--study", "own.py:tiny", "--gpus", "1", "--hardware", "pcie-2", "--tolerance", "100", "--early-stopping")


def test_a_run_with_early_stopping_says_who_ended_early_and_why_and_trains_the_others_to_their_end(grow: Grow, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW_LEARNERS)
    done = grow(*OPTIONS, "--trials", "8", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ended = {trial["number"]: trial for trial in found["trials"] if trial["state"] == "stopped_early"}
    assert ended
    assert not {0, 1} & ended.keys()
    run = RunFolder(tmp_path / "runs" / "tiny-1")
    told = read_trials(run.journal)
    for trial in found["trials"]:
        files, early = run.trial(trial["number"]), trial["number"] in ended
        lines, by = read_lines(files.metrics), read_yardstick(files)
        assert by is not None
        assert (by.samples, by.of) == (30 * 64 // PER_LOOK, 256)
        right = [reached.accuracy * by.samples for reached in reached_at(files).values()]
        assert right == pytest.approx([round(count) for count in right])  # of so many and not of all
        assert lines[-1]["step"] in (rung_steps(30) if early else {30: None})
        rungs = rung_steps(30)
        assert {line["step"]: line["rung"]["number"] for line in lines if "rung" in line}.items() <= rungs.items()
        assert (trial["accuracy"] is None) == early
        assert (told[trial["number"]].values is None) == early
        if early:  # what it lacked by the best of the courses that it was judged by, so that no sampler takes it for feasible
            expected = read_json(files.result)["expected_accuracy"]
            assert told[trial["number"]].constraints == {TOLERANCE: found["reference"]["accuracy"] - expected}
        assert not early or trial["failure"] == told[trial["number"]].user_attrs[FAILURE]
        assert not early or f"trial {trial['number']} stopped early: no way to the front after " in done.stderr


@pytest.mark.slow
def test_kills_change_nothing_of_who_ends_early(grow: Grow, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW_LEARNERS)
    options = [*OPTIONS, "--trials", "12"]
    assert grow(*options, "--name", "whole", cwd=tmp_path).returncode == 0
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    for point in (70, 110, 130, 170, 190):
        command = [*options, "--name", "killed"] if not killed.exists() else ["resume", "killed"]
        with started(command, environment, tmp_path) as parent:
            until(lambda point=point: steps(killed) >= point or parent.poll() is not None, parent)  # type: ignore[misc]
            kill(parent, "all" if point % 20 else "parent")
    assert grow("resume", "killed", cwd=tmp_path).returncode == 0
    told = [[(trial.state, trial.params, trial.values) for trial in read_trials(run / "study.journal")] for run in (whole, killed)]
    assert told[0] == told[1]
    assert "PRUNED" in {state.name for state, *_ in told[0]}
    for path in (path.relative_to(whole) for name in ("recipe", "peers", "result") for path in whole.glob(f"trials/*/{name}.json")):
        assert (whole / path).read_bytes() == (killed / path).read_bytes(), path
