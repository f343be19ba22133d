"""One call on a model and loaders of one's own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import grow
from grow import checkpoint
from grow.fitting import prepare
from grow.history import History
from grow.plan import Plan
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
        {"density": 0.4, "initial": "minimal", "birth": "split", "unit_pruning": "apoz"},
        {"density": 0.4, "initial": "minimal", "birth": "bridging", "batches": 2},
        {"density": 0.25, "pattern": "block_2x2"},
    ],
)
def test_every_way_ends_at_the_density_asked_for_and_has_learnt(settings: dict[str, Any]) -> None:
    result = grow.fit(model(), *loaders(), **{"epochs": 5, "learning_rate": 0.02, **settings})
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


def test_frozen_layers_keep_their_weights_and_kept_ones_their_connections() -> None:
    start = model()
    result = grow.fit(start, *loaders(), density=0.5, frozen=("0",), kept=("4",), epochs=3, learning_rate=0.02)
    assert torch.equal(result.network.layers["0"].dense_weight(), start[0].weight)
    assert not torch.equal(result.network.layers["4"].dense_weight(), start[4].weight)
    assert result.network.topology.layer("4").index is None
    assert result.network.topology.connections == round(0.5 * POSSIBLE)


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
        ({"density": 0.1, "initial": "ekr"}, "seed is 'ekr', .* did you mean 'erk'"),
        ({"density": 0.5, "initial": "minimal", "schedule": "iterative"}, "end_value is 328, but must be above 0 and at most start_value"),
        ({"density": 0.1, "birth": "gradmx"}, "birth is 'gradmx', .* did you mean 'gradmax'"),
        ({"density": 0.1, "pattern": "2of4"}, "pattern is '2of4', but must be one of"),
        ({"density": 0.1, "kept": ("conv",)}, "layer is 'conv', but must be one of 0, 2, 4"),
        ({"density": 0.1, "epochs": 0}, "epochs is 0, but must be above 0"),
        ({"tolerance": -1.0}, "points is -1.0, but must be at least 0"),
        ({"density": 0.1, "average": 1.0}, r"decay is 1.0, but must be in \[0, 1\)"),
    ],
)
def test_what_is_wrong_with_a_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        grow.fit(model(), *loaders(), **settings)


def test_importing_the_package_does_not_import_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, grow; assert 'torch' not in sys.modules"], check=True, cwd=Path(grow.__file__).parents[1]
    )


def test_a_plan_names_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"^drop_fraction is 1.5, but must be in \[0, 1\]; it is a share"):
        Plan(100, 10, 0.1, drop_fraction=1.5)
