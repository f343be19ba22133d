import json
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grow.allocate import ALLOCATIONS
from grow.births import BIRTHS
from grow.criteria import CRITERIA, GROWTH, TWO_STAGE
from grow.seeds import SEEDS
from grow.structured import PATTERNS
from search.errors import ConfigurationError
from search.recipe import Recipe, parse_setting, recipe, settable

REQUIRED: dict[str, object] = {"study": "digits", "network": "mlp", "data_sha256": "0" * 64, "number": 2, "role": "search"}


@given(
    density=st.floats(0, 1, exclude_min=True),
    price=st.floats(0, 1e300) | st.just("machine"),
    seed=st.integers(0, 2**32 - 1),
    devices=st.integers(2, 64),
    strategy=st.sampled_from(["data", "model", "owt", "units"]),
    study=st.text(min_size=1),
)
def test_json_and_back_is_the_same_recipe(**values: object) -> None:
    made = recipe(REQUIRED | values)
    assert Recipe.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_recipe_carries_the_layouts_of_a_strategy_without_a_name() -> None:
    layouts = {"fc1": "batch", "fc2": "units"}
    mixed = recipe(REQUIRED | {"devices": 2, "strategy": "mixed", "layouts": layouts})
    assert Recipe.from_json(json.loads(json.dumps(mixed.to_json()))) == mixed
    assert (mixed.how, mixed.by_units) == (layouts, True)
    for wrong in ({"strategy": "mixed"}, {"strategy": "data", "layouts": layouts}):
        with pytest.raises(ConfigurationError, match="must be given where strategy is 'mixed', and only there"):
            recipe(REQUIRED | {"devices": 2} | wrong)
    with pytest.raises(ConfigurationError, match="must be the layout of every space, 'whole', 'batch' or 'units', or nothing"):
        recipe(REQUIRED | {"devices": 2, "strategy": "mixed", "layouts": {"fc1": "unit"}})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("density", 1.3, "density is 1.3, but must be in (0, 1]"),
        ("density", 0.0, "density is 0.0, but must be in (0, 1]"),
        ("density", float("nan"), "density is nan, but must be in (0, 1]"),
        ("density", "thin", "density is 'thin', but must be in (0, 1]"),
        ("price", -1.0, "price is -1.0, but must be in [0, inf), or 'machine'"),
        ("price", "cheap", "price is 'cheap', but must be in [0, inf), or 'machine'"),
        ("steps", 0, "steps is 0, but must be an integer in [1, inf)"),
        ("steps", 1.5, "steps is 1.5, but must be an integer in [1, inf)"),
        ("learning_rate", float("inf"), "learning_rate is inf, but must be in (0, inf)"),
        (
            "initial",
            "ekr",
            "initial is 'ekr', but must be one of 'dense', 'erk', 'erdos_renyi', 'expander', 'radixnet', 'radixnet_permuted', 'minimal'; "
            "did you mean 'erk'?",
        ),
        ("strategy", "units", "strategy is 'units', but must be 'single' on one device"),
        ("devices", 2, "strategy is 'single', but must be 'data', 'model' or 'owt' on 2 devices"),
        ("compile", "yes", "compile is 'yes', but must be true or false"),
    ],
)
def test_a_wrong_value_is_named_with_the_rule(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        recipe(REQUIRED | {field: value})
    assert str(caught.value) == message


def test_a_wrong_name_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'density'"):
        recipe(REQUIRED | {"densty": 0.1})
    with pytest.raises(ConfigurationError, match="study is missing"):
        recipe({name: value for name, value in REQUIRED.items() if name != "study"})


@pytest.mark.parametrize("name", ["autocast", "compile"])
def test_what_is_for_whole_networks_is_refused_on_several_devices(name: str) -> None:
    assert getattr(recipe(REQUIRED | {name: True}), name)
    with pytest.raises(ConfigurationError, match=f"{name} is True, but must be False on 2 devices, whose ranks compute parts"):
        recipe(REQUIRED | {name: True, "devices": 2, "strategy": "data"})


def test_a_recipe_of_before_a_field_with_a_default_is_still_read() -> None:
    told = recipe(REQUIRED).to_json()
    del told["autocast"], told["compile"]
    assert Recipe.from_json(told) == recipe(REQUIRED)


def test_another_schema_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="schema_version is 2"):
        Recipe.from_json({**recipe(REQUIRED).to_json(), "schema_version": 2})


def test_settings_are_read_as_their_fields_type() -> None:
    assert parse_setting("steps=40") == ("steps", 40)
    assert parse_setting("density=1e-1") == ("density", 0.1)
    assert [parse_setting(f"price={price}")[1] for price in ("24", "machine")] == [24.0, "machine"]
    assert parse_setting("optimizer=adamw") == ("optimizer", "adamw")
    assert [parse_setting(f"compile={value}")[1] for value in ("true", "false", "1")] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "key=value"),
        ("stesp=4", "did you mean 'steps'"),
        ("density=1.3", r"density is 1.3, but must be in \(0, 1\]"),
        ("steps=many", "steps is 'many', but must be an integer"),
        ("autocast=bf16", "autocast is 'bf16', but must be true or false"),
        ("growth=gradeint", "did you mean 'gradient'"),
        ("seed=3", "--set names 'seed'"),
    ],
)
def test_a_wrong_setting_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_setting(text)


def test_every_field_is_settable_or_fixed_by_the_run() -> None:
    assert set(settable()) < {field.name for field in fields(Recipe)}
    assert not set(settable()) & {"study", "number", "role", "seed", "device"}


def test_a_recipe_of_before_a_field_was_added_takes_its_default() -> None:
    saved = recipe(REQUIRED | {"density": 0.05}).to_json()
    for name in ("schedule", "schedule_begin", "schedule_end", "updates_end", "rounds", "cycles", "allocation", "birth", "apoptosis"):
        del saved[name]
    assert Recipe.from_json(saved) == recipe(REQUIRED | {"density": 0.05})


def test_a_recipe_may_name_every_criterion_and_seed_of_the_engine() -> None:
    for field, names in (
        ("pruning", {**CRITERIA, **TWO_STAGE}),
        ("growth", GROWTH),
        ("initial", SEEDS),
        ("allocation", {*ALLOCATIONS, "global"}),
        ("birth", BIRTHS),
        ("pattern", {*PATTERNS, "source_group"}),
    ):
        annotation = get_type_hints(Recipe)[field]
        assert set(get_args(annotation)) == set(names)
