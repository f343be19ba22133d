from __future__ import annotations

import json

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.space import Choice, Float, Integer, Range, from_json, idle, suggest, to_json, up_to

floats = st.builds(lambda low, width, log: Float(low, low + width, log), st.floats(0.01, 1e3), st.floats(0, 1e3), st.booleans())
integers = st.builds(
    lambda low, count, step: Integer(low, low + count * step, step=step), st.integers(-50, 50), st.integers(0, 9), st.integers(1, 5)
)
choices = st.builds(lambda values: Choice(tuple(values)), st.lists(st.one_of(st.text(), st.integers()), min_size=1, unique=True))
ranges = st.dictionaries(st.text(min_size=1), st.one_of(floats, integers, choices), max_size=4)

SPACE: dict[str, Range] = {
    "price": Float(4, 1024, log=True),
    "strategy": Choice(("data", "units")),
    "density": Float(0.1, 0.5),
    "devices": Integer(1, 2),
    "imbalance": Float(0.02, 0.2),
}


def _random_trial(seed: int) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


@given(ranges)
def test_ranges_survive_json(ranges: dict[str, Range]) -> None:
    assert from_json(json.loads(json.dumps(to_json(ranges)))) == ranges


@given(st.one_of(floats, integers, choices), st.integers(0, 99))
def test_what_is_drawn_is_in_the_range(values: Range, seed: int) -> None:
    assert values.suggest(_random_trial(seed), "it") in values
    assert all(end in values for end in values.ends)


@given(st.integers(0, 200))
def test_what_decides_nothing_is_not_drawn(seed: int) -> None:
    trial = _random_trial(seed)
    values = suggest(trial, SPACE, {"steps": 5})
    assert values.keys() == SPACE.keys() | {"steps"}
    if values["devices"] == 1:
        assert values["strategy"] == "single"
        assert trial.params.keys() == {"devices", "density"}
    elif values["strategy"] == "data":
        assert values["price"] == values["imbalance"] == 0
        assert trial.params.keys() == {"devices", "strategy", "density"}
    else:
        assert trial.params.keys() == SPACE.keys()


@given(st.integers(0, 50))
def test_parameters_give_the_same_values_again(seed: int) -> None:
    trial = _random_trial(seed)
    values = suggest(trial, SPACE, {})
    assert suggest(optuna.trial.FixedTrial(trial.params), SPACE, {}) == values


def test_settings_count_as_much_as_draws() -> None:
    without = {name: values for name, values in SPACE.items() if name not in ("devices", "strategy")}
    assert suggest(_random_trial(0), without, {"devices": 1, "strategy": "units"})["strategy"] == "single"
    assert suggest(_random_trial(0), without, {"devices": 2, "strategy": "units"})["price"] in SPACE["price"]


def test_units_on_several_devices_leave_nothing_idle() -> None:
    assert idle({"devices": 2, "strategy": "units"}) == {}


def test_devices_end_at_the_number_asked_for() -> None:
    assert up_to(SPACE, 1)["devices"] == Integer(1, 1)
    assert up_to(SPACE, 5)["devices"] == Integer(1, 2)
    assert up_to({"devices": Integer(2, 16, step=2)}, 5)["devices"] == Integer(2, 4, step=2)
    assert up_to({}, 3) == {}
    with pytest.raises(ValueError, match="devices is 1, but must be at least 2"):
        up_to({"devices": Integer(2, 4)}, 1)


@pytest.mark.parametrize(
    "contradiction",
    [
        lambda: Choice(()),
        lambda: Choice(("a", "a")),
        lambda: Float(2, 1),
        lambda: Float(0, 1, log=True),
        lambda: Float(0, float("nan")),
        lambda: Float(0, float("inf")),
        lambda: Integer(0, 5, log=True),
        lambda: Integer(0, 5, step=2),
        lambda: Integer(0, 4, step=0),
        lambda: Integer(1, 5, log=True, step=2),
    ],
)
def test_a_range_that_contradicts_itself_is_refused(contradiction: type[Range]) -> None:
    with pytest.raises(ValueError, match="but must"):
        contradiction()
