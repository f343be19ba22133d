"""One call on a model and loaders of one's own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import grow
from grow import checkpoint
from grow.criteria import criterion, weighted_sum
from grow.editing.insertion import Insertion
from grow.fitting import prepare
from grow.history import History
from grow.network import Network
from grow.plan import Plan
from grow.structured import blocks
from grow.train import Progress, train

pytestmark = pytest.mark.filterwarnings("ignore:points is .* two standard errors")


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(900, 10, generator=generator)
    targets = (inputs[:, :3].sum(1) > 0).long()
    parts = [TensorDataset(inputs[rows], targets[rows]) for rows in (slice(0, 600), slice(600, 900))]
    return DataLoader(parts[0], batch_size=30, shuffle=True), DataLoader(parts[1], batch_size=300)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))


POSSIBLE = 10 * 24 + 24 * 16 + 16 * 2


@pytest.mark.parametrize(
    "settings",
    [
        {"density": 0.1},
        {"density": 0.2, "initial": "erk", "schedule": "linear", "growth": "random", "optimizer": "rmsprop", "learning_rate": 0.003},
        {"density": 0.2, "schedule": "iterative", "pruning": "taylor", "drop_fraction": 0.0, "batches": 3, "optimizer": "adamw"},
        {"density": 0.3, "schedule": "one_shot", "end": 0.0, "updates_end": 0.2, "pruning": "snip", "drop_fraction": 0.0},
        {"density": 0.2, "schedule": "continuous", "pruning": "movement", "update_interval": 2, "allocation": "erk"},
        {"density": 0.2, "schedule": "cyclic", "begin": 0.2, "cycles": 2, "average": 0.9},
        {"density": 0.3, "units": {"0": 12}, "optimizer": "sgd", "learning_rate": 0.1},
        {"density": 0.4, "initial": "minimal", "units": {"0": 10, "2": 9}},
        {"density": 0.4, "initial": "minimal", "birth": "gradmax"},
        {"density": 0.4, "initial": "minimal", "birth": "split", "unit_pruning": "apoz", "epochs": 5},
        {"density": 0.4, "initial": "minimal", "birth": "bridging", "batches": 2},
        {"density": 0.2, "splicing": True, "optimizer": "sgd", "learning_rate": 0.1},
        {"density": 0.2, "splicing": True, "allocation": "erk", "optimizer": "sgd", "learning_rate": 0.1},
        {"density": 0.2, "pruning": "magnitude_then_obd", "smoothing": None},
        {"density": 0.2, "pruning": "taylor", "smoothing": 0.9},
        {"density": 0.2, "pruning": weighted_sum("both", [(criterion("magnitude"), 1.0), (criterion("taylor"), 2.0)])},
        {"density": 0.25, "pattern": blocks(3, 2)},
        {"density": 0.25, "pattern": "block_2x2"},
    ],
)
def test_every_way_ends_at_the_density_asked_for_and_has_learnt(settings: dict[str, Any]) -> None:
    result = grow.fit(model(), *loaders(), **{"epochs": 3, "learning_rate": 0.02, **settings})
    topology = result.network.topology
    assert topology.connections <= round(settings["density"] * POSSIBLE)
    assert result.density == topology.connections / POSSIBLE
    if topology.possible >= round(settings["density"] * POSSIBLE):  # there was room for them
        assert topology.connections == round(settings["density"] * POSSIBLE)
    for space, units in settings.get("units", {}).items():
        assert topology.units[space] <= units
    assert result.accuracy > 0.8
    assert result.history["connections_after"].iloc[-1] == topology.connections


def test_a_tolerance_is_held_by_the_sparsest_network_found() -> None:
    result = grow.fit(model(), *loaders(), tolerance=3.0, epochs=12, learning_rate=0.02)
    reference = result.history.query("what == 'accept'")["accuracy"].iloc[0]
    assert result.accuracy >= reference - 0.03 - 1e-9
    assert result.density < 0.6


def test_redundant_units_are_merged() -> None:
    result = grow.fit(model(), *loaders(), density=1.0, apoptosis=0.02, epochs=3, learning_rate=0.02, update_interval=15)
    assert "merge_units" in set(result.history["what"])
    assert result.network.topology.units["2"] < 16
    assert result.accuracy > 0.9


def test_synflow_before_training_takes_rounds_and_leaves_paths_at_a_density_at_which_one_round_leaves_next_to_none() -> None:
    settings = {"density": 0.06, "schedule": "one_shot", "end": 0.0, "updates_end": 0.1, "drop_fraction": 0.0, "epochs": 1}
    found = {}
    for name, pruning in (("rounds", criterion("synflow")), ("one round", replace(criterion("synflow"), round_share=1.0))):
        result = grow.fit(model(), *loaders(), pruning=pruning, **settings)
        assert result.history["what"].iloc[0] == "prune_connections"
        found[name] = result.network.topology
    assert found["rounds"].connections == round(0.06 * POSSIBLE)
    assert min(found["rounds"].units.values()) > 1
    assert sum(found["rounds"].units.values()) > sum(found["one round"].units.values())


def test_layers_come_at_their_steps() -> None:
    insertions = ((5, Insertion("0", "deeper", "identity")), (9, Insertion("2", "side", "residual", units=6, fan_in=4, fan_out=4)))
    result = grow.fit(model(), *loaders(), density=0.6, insertions=insertions, epochs=3, learning_rate=0.02)
    assert {"deeper", "side_in", "side_out"} <= set(result.network.layers)
    inserted = result.history.query("what == 'insert_layer'")
    assert (inserted["loss_after"] - inserted["loss_before"]).abs().max() < 1e-6
    assert result.accuracy > 0.8


def test_twins_are_merged_where_the_method_asks_for_them() -> None:
    start = model()
    with torch.no_grad():
        start[0].weight[5:10], start[0].bias[5:10] = 2 * start[0].weight[:5], 2 * start[0].bias[:5]
    settings = {
        "density": 1.0,
        "update_interval": 1,
        "updates_end": 0.6,
        "steps": 5,
        "learning_rate": 1e-6,
        "apoptosis": 1e-3,
        "drop_fraction": 0.0,
    }
    result = grow.fit(start, *loaders(), merging="twins", **settings)
    assert result.history["what"].iloc[0] == "merge_units"
    assert result.network.topology.units["0"] == 19


def test_spaces_that_apoptosis_cannot_judge_are_passed_over_and_others_merged() -> None:
    """A norm mixes the units of the first space, so that one unit less would change all others."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(10, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))
    result = grow.fit(start, *loaders(), density=1.0, apoptosis=0.1, epochs=2, learning_rate=0.02)
    assert result.network.topology.units["0"] == 24
    assert result.network.topology.units["3"] < 16


@pytest.mark.parametrize("method", ["splicing", "smoothing", "two-stage"])
def test_what_methods_remember_is_resumed_bit_by_bit(method: str, tmp_path: Path) -> None:
    settings = {"splicing": {"splicing": True}, "smoothing": {"smoothing": 0.9}, "two-stage": {"pruning": "magnitude_then_obd"}}[method]

    def session() -> grow.session.Session:
        return prepare(model(), *loaders(), density=0.2, steps=30, learning_rate=0.1, optimizer="sgd", update_interval=2, **settings)

    whole, first, second = session(), session(), session()
    for _ in train(whole):
        pass
    for made in train(first):
        if made.step == 15:
            checkpoint.save_session(tmp_path / "saved", first)
            break
    saved = checkpoint.latest(tmp_path / "saved")
    assert saved is not None
    second.history = first.history
    checkpoint.restore_session(second, saved)
    for _ in train(second):
        pass
    one, other = checkpoint.capture_followed(whole).tensors, checkpoint.capture_followed(second).tensors
    assert set(one) == set(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_frozen_layers_keep_their_weights_and_kept_ones_their_connections() -> None:
    start = model()
    result = grow.fit(start, *loaders(), density=0.5, frozen=("0",), kept=("4",), epochs=3, learning_rate=0.02)
    assert torch.equal(result.network.layers["0"].dense_weight(), start[0].weight)
    assert not torch.equal(result.network.layers["4"].dense_weight(), start[4].weight)
    assert result.network.topology.layer("4").index is None
    assert result.network.topology.connections == round(0.5 * POSSIBLE)


def test_layers_that_need_no_gradient_stay_as_they_are_even_in_a_sparse_seed() -> None:
    start = model()
    start[2].requires_grad_(False)
    result = grow.fit(start, *loaders(), density=0.7, initial="erk", steps=20)
    assert result.network.topology.layer("2").index is None
    assert torch.equal(result.network.layers["2"].dense_weight(), start[2].weight)
    assert result.network.topology.connections == round(0.7 * POSSIBLE)
    assert [parameter.requires_grad for parameter in result.network.layers["2"].parameters()] == [False, False]


def test_schedules_that_retrain_between_prunings_replace_nothing() -> None:
    for schedule in ("one_shot", "iterative"):
        result = grow.fit(model(), *loaders(), density=0.3, schedule=schedule, steps=20)
        assert _replaced(result.history) == {"0.0 %"}
    assert _replaced(grow.fit(model(), *loaders(), density=0.3, schedule="one_shot", steps=20, drop_fraction=0.3).history) != {"0.0 %"}


def _replaced(history: pd.DataFrame) -> set[str]:
    return set(history.query("what == 'prune_connections'")["why"].str.extract(r"wanted, (.*) of them replaced")[0])


def test_a_density_that_is_not_reached_is_told() -> None:
    narrow = nn.Sequential(nn.Linear(10, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"density is .* at the end, but 0.03571 was asked for"):
        result = grow.fit(narrow, *loaders(), density=0.03, steps=20)
    assert result.network.topology.connections >= 3


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [(1, torch.rand(40, 1)), (1, torch.rand(40)), (1, torch.zeros(40, dtype=torch.int64)), (2, torch.rand(40, 2))],
    ids=["regression", "one target", "one class", "shares"],
)
def test_an_accuracy_that_is_not_defined_is_refused_before_the_training(outputs: int, targets: torch.Tensor) -> None:
    batches, seen = [(torch.randn(40, 10), targets)], []
    with pytest.raises(ValueError, match=r"^targets have shape .* say what counts as right: correct="):
        grow.fit(nn.Sequential(nn.Linear(10, outputs)), batches, batches, density=0.5, steps=3, progress=seen.append)
    assert not seen


def test_of_maps_the_share_that_is_right_counts() -> None:
    inputs = torch.randn(6, 1, 4, 4)
    batches = [(inputs, (inputs[:, 0] > 0).long())]
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    result = grow.fit(module, batches, batches, density=1.0, steps=1)
    shares = (result.network.eval()(inputs).argmax(1) == batches[0][1]).float().mean()
    assert 0 <= result.accuracy <= 1
    assert result.accuracy == pytest.approx(float(shares), abs=1e-6)


def test_the_same_seed_gives_the_same_network_and_the_model_is_left_alone() -> None:
    start, made = model(), []
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    for draw in (0, 0, 1):
        torch.manual_seed(draw + len(made))  # what the caller's generator stands at plays no role
        result = grow.fit(start, *loaders(), density=0.2, epochs=1, seed=draw)
        made.append(torch.cat([parameter.detach().flatten() for parameter in result.network.parameters()]))
    assert torch.equal(made[0], made[1])
    assert made[2].shape != made[0].shape or not torch.equal(made[2], made[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())


def test_a_training_from_loaders_is_resumed_bit_by_bit(tmp_path: Path) -> None:
    def session(history: History) -> grow.session.Session:
        return prepare(model(), *loaders(), history=history, density=0.2, steps=45, learning_rate=0.02, average=0.9, pruning="movement")

    whole, first = session(History(tmp_path / "whole.jsonl")), session(History(tmp_path / "other.jsonl"))
    for _ in train(whole):
        pass
    for made in train(first):
        if made.step == 27:
            checkpoint.save_session(tmp_path / "saved", first)
            break
    second, saved = session(History(tmp_path / "other.jsonl")), checkpoint.latest(tmp_path / "saved")
    assert saved is not None
    checkpoint.restore_session(second, saved)
    for _ in train(second):
        pass
    one, other = checkpoint.capture_followed(whole).tensors, checkpoint.capture_followed(second).tensors
    assert set(one) == set(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_progress_is_told_after_every_step() -> None:
    seen: list[Progress] = []
    grow.fit(model(), *loaders(), density=0.5, steps=7, progress=seen.append)
    assert [made.step for made in seen] == list(range(1, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "density is None, but must be given where tolerance is not"),
        ({"density": 0.1, "tolerance": 1.0}, "density is 0.1 and tolerance is 1.0, but only one may be given"),
        ({"density": 1.3}, r"density is 1.3, but must be in \(0, 1\]"),
        ({"densty": 0.1}, "setting is 'densty', but must be one of .*; did you mean 'density'"),
        ({"density": 0.1, "begin": 0.5, "end": 0.4}, "end is 0.4, but must be at least begin, 0.5"),
        ({"density": 0.1, "end": 0.9}, "updates_end is 0.75, but must be at least end, 0.9"),
        ({"density": 0.1, "pruning": "magnitud"}, "criterion is 'magnitud', .* did you mean 'magnitude'"),
        ({"density": 0.1, "schedule": "cubical"}, "schedule is 'cubical', but must be one of cubic"),
        ({"density": 0.1, "initial": "ekr"}, "initial is 'ekr', .* did you mean 'erk'"),
        (
            {"density": 0.5, "initial": "minimal", "schedule": "iterative"},
            "schedule is 'iterative', but must be cubic, linear or one_shot where initial is 'minimal'",
        ),
        ({"density": 0.1, "birth": "gradmx"}, "birth is 'gradmx', .* did you mean 'gradmax'"),
        ({"density": 0.1, "pattern": "2of4"}, "pattern is '2of4', but must be one of"),
        ({"density": 0.1, "kept": ("conv",)}, "layer is 'conv', but must be one of 0, 2, 4"),
        ({"density": 0.1, "epochs": 0}, "epochs is 0, but must be above 0"),
        ({"density": 0.1, "units": {"output": 3}}, "units name the space 'output', but must name hidden ones"),
        ({"density": 0.1, "units": {"0": 0}}, "units of space '0' is 0, but must be at least 1"),
        ({"density": 0.1, "unit_pruning": "batch_norm", "units": {"0": 9}}, "space '0' has no batch norm with a scale"),
        ({"density": 0.1, "pruning": "connectivity"}, "parts of the network is None, but connectivity is measured between parts"),
        ({"density": 0.1, "splicing": True, "pattern": "fan_in"}, "splicing is True, but must be False with a pattern"),
        ({"density": 0.1, "smoothing": 1.0}, r"smoothing is 1.0, but must be in \[0, 1\)"),
        ({"density": 0.1, "apoptosis": 0.1, "merging": "x"}, "method is 'x', but must be 'dependent' or 'twins'"),
        (
            {"density": 0.1, "insertions": ((1, Insertion("output", "new", "identity")),)},
            "space 'output' is the output, but must be hidden",
        ),
        ({"tolerance": -1.0}, "tolerance is -1.0, but must be at least 0"),
        ({"density": 0.1, "average": 1.0}, r"average is 1.0, but must be in \[0, 1\)"),
        ({"density": "0.1"}, r"density is '0.1', but must be in \(0, 1\]"),
        ({"density": 0.1, "update_interval": 0}, "update_interval is 0, but must be at least 1"),
        ({"density": 0.1, "kept": "4"}, r"kept is '4', but must be several names; pass \('4',\)"),
        ({"density": 0.1, "apoptosis": 1.0}, r"apoptosis is 1.0, but must be in \[0, 1\)"),
        ({"density": 0.1, "device": "cuda:99"}, "device is 'cuda:99', but must be one that torch can use here"),
        (
            {"density": 0.1, "kept": ("2",)},
            r"density is 0.1, but must be at least 0.5884 where 2 is left as it is: 384 connections are there",
        ),
        ({"density": 0.2, "initial": "erk", "schedule": "cyclic"}, "schedule is 'cyclic', but must be cubic, .* there is nothing to prune"),
        ({"density": 0.7, "initial": "minimal", "kept": ("2",)}, "initial is 'minimal', but must leave the units of '2', since layer '2'"),
        ({"tolerance": 1.0, "schedule": "cyclic"}, "schedule is 'cyclic', but must be left out where a tolerance is given"),
        ({"tolerance": 1.0, "initial": "erk"}, "initial is 'erk', but must be left out where a tolerance is given"),
    ],
)
def test_what_is_wrong_with_a_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        grow.fit(model(), *loaders(), **settings)


def test_a_metric_of_another_shape_and_empty_validation_data_are_named() -> None:
    training, validation = loaders()
    with pytest.raises(ValueError, match=r"^correct gave the shape \(2, 1\), but must give one value per sample, \(2,\)"):
        grow.fit(model(), training, validation, density=0.5, correct=lambda outputs, targets: outputs[:, :1])
    with pytest.raises(ValueError, match=r"^validation has no batches"):
        grow.fit(model(), training, [], density=0.5)


def test_births_that_are_not_defined_show_before_the_training() -> None:
    """A feature map that is pooled before it is read is no place for units with computed weights."""
    inputs, seen = torch.randn(20, 1, 6, 6), []
    batches = [(inputs, (inputs.mean((1, 2, 3)) > 0).long())]
    pooled = nn.Sequential(nn.Conv2d(1, 12, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ValueError, match=r"space '0' is resized before layer '3', .*; use random or split"):
        grow.fit(pooled, batches, batches, density=0.9, initial="minimal", units={"0": 12}, birth="gradmax", progress=seen.append)
    assert not seen


def test_importing_the_package_does_not_import_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, grow; assert 'torch' not in sys.modules"], check=True, cwd=Path(grow.__file__).parents[1]
    )


def test_a_plan_names_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"^drop_fraction is 1.5, but must be in \[0, 1\]; it is a share"):
        Plan(100, 10, 0.1, drop_fraction=1.5)


SPEEDS = {
    "compiled": {"compile": "eager"},
    "autocast": {"autocast": True},
    "both, by csr": {"compile": "eager", "autocast": True, "timings": lambda name, _: {"csr": 1.0}.get(name)},
}


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:autocast is torch.bfloat16, but kernel csr")
@pytest.mark.parametrize("speed", [pytest.param("compiled", marks=pytest.mark.slow), "autocast", "both, by csr"])
def test_a_compiled_and_autocast_training_takes_the_same_course(speed: str) -> None:
    chosen: dict[str, Any] = {"density": 0.3, "steps": 40, "update_interval": 10, "learning_rate": 0.02}
    torch.compiler.reset()
    losses: dict[str, list[float]] = {"plain": [], speed: []}
    plain = grow.fit(model(), *loaders(), progress=lambda made: losses["plain"].append(made.loss), **chosen)
    other = grow.fit(model(), *loaders(), progress=lambda made: losses[speed].append(made.loss), **chosen, **SPEEDS[speed])
    assert {"prune_connections", "grow_connections"} <= set(plain.history["what"])
    edits = ["step", "what", "connections_after"]
    assert other.history[edits].query("what != 'remove_units'").equals(plain.history[edits].query("what != 'remove_units'"))
    exact = speed == "compiled"
    assert losses[speed] == pytest.approx(losses["plain"], rel=1e-4 if exact else 0.1, abs=1e-5 if exact else 0.02)
    assert losses[speed] != losses["plain"] or exact
    assert (other.network._compiled_call_impl is not None) == ("compile" in SPEEDS[speed])
    if "timings" in SPEEDS[speed]:
        assert {layer.kernel for layer in other.network.layers.values() if layer.density < 1} == {"csr"}


def test_a_kernel_that_autocast_leaves_in_float32_is_named_once() -> None:
    chosen: dict[str, Any] = {"density": 0.3, "steps": 20, "update_interval": 5, "learning_rate": 0.02, "autocast": True}
    with pytest.warns(
        UserWarning, match=r"autocast is torch\.bfloat16, but kernel csr does not know it .* \(dense, columns, radix, block_16"
    ) as said:
        grow.fit(model(), *loaders(), **chosen, timings=lambda name, _: {"csr": 1.0}.get(name))
    assert len(said) == 1
    grow.fit(model(), *loaders(), **chosen, timings=lambda name, _: {"columns": 1.0}.get(name))  # any warning is an error


def test_what_cannot_be_compiled_is_said_with_the_remedy() -> None:
    def broken(*_: object) -> Any:
        raise OSError("no compiler is here")

    network = Network(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))
    network.compile(backend=broken)
    with pytest.raises(
        RuntimeError, match=r"torch\.compile cannot compile the network here \(.*no compiler is here.*\); leave compile out"
    ):
        network(torch.zeros(3, 2))
