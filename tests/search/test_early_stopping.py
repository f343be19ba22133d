"""Trials that fall behind end early: the decision as a function, and in runs that are killed."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.early_stopping import RUNGS, Peer, Reached, decide, read_peers, rung_steps, write_peers
from search.rundir import TrialFolder, read_lines
from search.storage import FAILURE, read_trials
from tests.search.conftest import STUDY, Grow
from tests.search.test_interruption import kill, started, steps, until

SAMPLES = 100
RUNG = 1

reached = st.builds(Reached, st.integers(0, 20).map(lambda n: n / 20), st.integers(1, 9).map(float))
some = st.lists(st.tuples(st.booleans(), st.lists(reached, max_size=3)), max_size=6).map(
    lambda found: [Peer(number, feasible, tuple(rungs)) for number, (feasible, rungs) in enumerate(found)]
)


def ahead(peer: Peer, mine: Reached) -> bool:
    there = peer.reached[RUNG].accuracy
    return there - mine.accuracy > sqrt(there * (1 - there) / SAMPLES)


@given(reached, some)
def test_a_trial_ends_where_a_feasible_peer_dominates_it_or_no_feasible_one_was_as_poor(mine: Reached, peers: list[Peer]) -> None:
    there = [peer for peer in peers if len(peer.reached) > RUNG]
    feasible = [peer for peer in there if peer.feasible]
    dominated = any(ahead(peer, mine) and peer.reached[RUNG].samples_per_s >= mine.samples_per_s for peer in feasible)
    warned = any(ahead(peer, mine) for peer in there if not peer.feasible)
    hopeless = bool(feasible) and all(ahead(peer, mine) for peer in feasible) and warned
    assert (decide(mine, RUNG, peers, SAMPLES) is not None) == (dominated or hopeless)


@given(reached, some, st.integers(0, 10).map(lambda n: n / 20), st.integers(0, 5).map(float))
def test_being_better_never_ends_a_trial_and_order_does_not_matter(mine: Reached, peers: list[Peer], more: float, faster: float) -> None:
    better = Reached(min(1.0, mine.accuracy + more), mine.samples_per_s + faster)
    if decide(mine, RUNG, peers, SAMPLES) is None:
        assert decide(better, RUNG, peers, SAMPLES) is None
        assert decide(mine, RUNG, peers[::-1], SAMPLES) is None


@given(some)
def test_what_was_best_at_a_rung_in_either_objective_is_kept_while_it_is_feasible(peers: list[Peer]) -> None:
    for peer in (peer for peer in peers if peer.feasible and len(peer.reached) > RUNG):
        others = [other for other in peers if other is not peer and len(other.reached) > RUNG]
        mine = peer.reached[RUNG]
        if all(other.reached[RUNG].accuracy <= mine.accuracy for other in others):
            assert decide(mine, RUNG, peers, SAMPLES) is None
        fastest = all(other.reached[RUNG].samples_per_s < mine.samples_per_s for other in others)
        if fastest:  # itself being a peer that ended feasible, it is not hopeless
            assert decide(mine, RUNG, peers, SAMPLES) is None


def test_by_hand() -> None:
    dense, sparse = Peer(0, True, (Reached(0.9, 10.0),)), Peer(3, True, (Reached(0.8, 30.0),))
    failing = Peer(4, False, (Reached(0.5, 60.0),))
    assert decide(Reached(0.7, 20.0), 0, [dense, sparse], SAMPLES) == "behind trial 3 in accuracy and throughput after 30% of the training"
    assert decide(Reached(0.77, 20.0), 0, [dense, sparse], SAMPLES) is None  # by less than the standard error of 0.8, which is 0.04
    assert decide(Reached(0.4, 50.0), 0, [dense, sparse], SAMPLES) is None  # faster than both, and nothing says that it is hopeless
    told = decide(Reached(0.4, 50.0), 0, [dense, sparse, failing], SAMPLES)
    assert told == "behind all feasible trials in accuracy after 30% of the training, and behind the infeasible trial 4"
    assert decide(Reached(0.4, 50.0), 1, [dense, sparse, failing], SAMPLES) is None  # nobody was seen at that rung


def test_rungs_are_within_the_training() -> None:
    for count in range(1, 50):
        assert all(0 < step < count and step == round(RUNGS[rung] * count) for step, rung in rung_steps(count).items())


def test_peers_are_fixed_once(tmp_path: Path) -> None:
    files, peer = TrialFolder(tmp_path), Peer(3, True, (Reached(0.8, 30.0), Reached(0.85, 31.5)))
    assert read_peers(files) is None
    write_peers(files, [peer], 100)
    write_peers(files, [peer, replace(peer, number=4)], 100)
    assert read_peers(files) == ([peer], 100)


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
    told = read_trials(tmp_path / "runs" / "tiny-1" / "study.journal")
    for trial in found["trials"]:
        lines = read_lines(tmp_path / "runs" / "tiny-1" / "trials" / f"{trial['number']:04d}" / "metrics.jsonl")
        early = trial["number"] in ended
        assert lines[-1]["step"] in (rung_steps(30) if early else {30: None})
        assert (trial["accuracy"] is None) == early
        assert (told[trial["number"]].values is None) == early
        assert not early or trial["failure"] == told[trial["number"]].user_attrs[FAILURE]
        assert not early or f"trial {trial['number']} stopped early: behind " in done.stderr


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
