"""Samplers that are made anew for every draw: each draws alike from the same trials, and its model learns from trials that others drew."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import get_args

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search import storage
from search.options import SamplerChoice
from search.results import trial_state
from search.space import Choice, Float, Integer, Range

RANGES: dict[str, Range] = {"density": Float(0.0, 1.0), "momentum": Float(0.0, 1.0)}
CHOICES = get_args(SamplerChoice)


def asked(study: optuna.Study, number: int, choice: SamplerChoice, seed: int = 1) -> storage.Proposal:
    return storage.ask(study.trials, RANGES, {}, seed=storage.seed_of(seed, number), startup=5, choice=choice)


def searched(journal: Path, choice: SamplerChoice, trials: int, *, seed: int = 1, reopening: bool = False) -> optuna.Study:
    """A search for a small momentum and a density below 1/2, along which accuracy and throughput trade; others are infeasible."""
    study = storage.open_study(journal, "run")
    for number in range(trials):
        drawn = asked(study, number, choice, seed)
        storage.add_running(study, "search", drawn)
        density, momentum = (float(str(drawn.params[name])) for name in ("density", "momentum"))
        storage.tell_complete(study, number, density - momentum, 1 - density - momentum, density - 0.5)
        if reopening:
            study = storage.open_study(journal, "run")
    return study


@pytest.mark.parametrize("choice", ["tpe", "nsga2", "random"])
def test_a_search_that_is_reopened_before_every_draw_is_the_same_search(choice: SamplerChoice, tmp_path: Path) -> None:
    whole, torn = (searched(tmp_path / name, choice, 14, reopening=name == "torn") for name in ("whole", "torn"))
    assert [trial.params for trial in whole.trials] == [trial.params for trial in torn.trials]
    assert len({json.dumps(trial.params) for trial in whole.trials}) == 14  # also where NSGA-II copies parents as they are


@pytest.mark.parametrize("choice", ["tpe", "gp"])
def test_a_model_draws_better_than_chance_and_keeps_to_what_is_feasible(choice: SamplerChoice, tmp_path: Path) -> None:
    trials = 10 if choice == "gp" else 30
    late = searched(tmp_path / "study.journal", choice, trials).trials[-trials // 4 :]
    assert mean(trial.params["momentum"] for trial in late) < 0.3  # by chance 0.5
    assert sum(storage.feasible(trial) for trial in late) > len(late) / 2


def test_nsga2_counts_its_generations_across_restarts_and_crosses_the_best_of_them(tmp_path: Path) -> None:
    """A trial that five of ten others beat is none of the best five, whatever settles ties, and the third generation has nothing of it."""
    inherited, lost = [], 0
    for seed in range(5):
        study = searched(tmp_path / f"{seed}.journal", "nsga2", 15, seed=seed, reopening=seed == 0)
        assert [trial.system_attrs["NSGAIISampler:generation"] for trial in study.trials] == [number // 5 for number in range(15)]
        former, third = study.trials[:10], study.trials[10:]
        beaten = [trial for trial in former if sum(beats(other, trial) for other in former) >= 5]
        fit = {value for trial in former if trial not in beaten for value in trial.params.values()}
        unfit = {value for trial in beaten for value in trial.params.values()} - fit
        children = [value for trial in third for value in trial.params.values()]
        assert not unfit & set(children)
        inherited += [value for value in children if value in fit]
        lost += len(unfit)
    assert min(len(inherited), lost) > 20  # if any could be handed down, one of the lost would have been


def beats(one: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether it comes before another by what is feasible, else by how far it is from that, else by both objectives."""
    broken = [sum(max(0.0, excess) for excess in trial.constraints.values()) for trial in (one, other)]
    if max(broken) > 0:
        return broken[0] < broken[1]
    return one.values != other.values and all(mine >= theirs for mine, theirs in zip(one.values, other.values, strict=True))


def test_what_was_drawn_is_not_drawn_again_while_there_is_anything_else(tmp_path: Path) -> None:
    few: dict[str, Range] = {"growth": Choice(("gradient", "random")), "devices": Integer(1, 2)}
    study = storage.open_study(tmp_path / "study.journal", "run")
    for number in range(5):
        guess = {"growth": "random", "devices": 2} if number < 2 else None
        drawn = storage.ask(study.trials, few, {}, seed=number, startup=9, choice="random", guess=guess)
        storage.add_running(study, "search", drawn)
    found = [trial.params for trial in study.trials]
    assert found[0] == {"growth": "random", "devices": 2}
    assert all(params not in found[:number] for number, params in enumerate(found[:4]))
    assert found[4] in found[:4]


def test_no_sampler_but_the_gaussian_process_needs_torch() -> None:
    others = [choice for choice in CHOICES if choice != "gp"]
    code = f"import sys; from search.samplers import sampler; [sampler(c, 0, 4) for c in {others}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("choice", CHOICES)
def test_a_trial_that_ran_out_of_memory_is_infeasible_has_no_values_and_stops_no_sampler(choice: SamplerChoice, tmp_path: Path) -> None:
    study = searched(tmp_path / "study.journal", choice, 6)
    storage.add_running(study, "search", asked(study, 6, choice))
    storage.tell_infeasible(study, 6, "memory ran out")
    told = study.trials[6]
    assert (told.state, told.values, storage.broken(told)) == (TrialState.PRUNED, None, [storage.MEMORY])
    assert not storage.feasible(told)
    assert told.params.keys() == asked(study, 7, choice).params.keys()


def test_what_ended_early_for_want_of_accuracy_draws_no_others_to_it(tmp_path: Path) -> None:
    study = storage.open_study(tmp_path / "study.journal", "run")
    for number in range(12):
        storage.add_running(study, "search", asked(study, number, "random"))
        density = float(study.trials[number].params["density"])
        if density > 0.6:
            storage.tell_stopped_early(study, number, "no way to the front", density)
        else:
            storage.tell_complete(study, number, 0.5, 1.0, 0.5 + density)
    ended = [trial for trial in study.trials if trial.values is None]
    assert 2 < len(ended) < 10
    assert {trial_state(trial) for trial in ended} == {"stopped_early"}
    drawn = [storage.ask(study.trials, RANGES, {}, seed=seed, startup=5).params["density"] for seed in range(20)]
    assert mean(float(str(density)) for density in drawn) < 0.4  # none is feasible, but those that are nearly so are not dense


def test_memory_beyond_the_devices_is_a_broken_constraint(tmp_path: Path) -> None:
    study = storage.open_study(tmp_path / "study.journal", "run")
    for number, memory in enumerate((1.0, 1.5, None)):
        storage.add_running(study, "search")
        storage.tell_complete(study, number, 0.9, 10.0, 0.8, memory)
    assert [storage.feasible(trial) for trial in study.trials] == [True, False, True]
    assert study.trials[1].constraints[storage.MEMORY] == 0.5
    assert storage.pareto(study.trials) == [0, 2]
