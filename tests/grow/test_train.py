"""Training while growing and pruning, its history, and checkpoints that resume bit by bit."""

import copy
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from grow import allocate, checkpoint, controller, edits, schedules
from grow.criteria import CRITERIA
from grow.editing.insertion import Insertion
from grow.history import History
from grow.kernels import KernelCase
from grow.layers import SparseLayer
from grow.network import Network
from grow.optim import make
from grow.task import Classification, Samples, some
from grow.topology import unconnected
from grow.train import DivergedError, Methods, Session, accuracy, carry_out, evaluate, next_training, train, train_step


def rings(samples: int, seed: int) -> Samples:
    """Three classes that no linear model can tell apart: rings around the origin, in 8 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    directions = nn.functional.normalize(torch.randn(samples, 8, generator=generator), dim=1)
    return Samples(directions * (1.0 + targets[:, None]), targets)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def make_session(
    history: History,
    optimizer: str = "sgd",
    *,
    learning_rate: float = 0.05,
    price: float | None = None,
    grown: bool = False,
    kernel: str = "dense",
    batches: int = 1,
) -> Session:
    torch.manual_seed(0)
    task = Classification(rings(1000, 1), rings(300, 2), lambda: rings(300, 3), batch_size=50, seed=4)
    network = Network(mlp(), torch.zeros(1, 8))
    possible = network.topology.connections
    units = {}
    if grown:
        for space in network.topology.hidden:
            network.remove_units(space.name, np.arange(4, space.units))
            units[space.name] = schedules.linear(4, 16, 0, 60)
    if price is not None:
        network.assign({space.name: np.arange(space.units) % 2 for space in network.topology.hidden})
    network.use_kernels(lambda case: kernel, 50)
    optim = make(optimizer, network.parameters(), learning_rate)  # type: ignore[arg-type]
    network.attach(optim)
    target = schedules.cubic(network.topology.connections, round(0.2 * possible), 0, 60)
    policy = controller.Policy(120, 10, 80, target, schedules.cosine(0.3, 80), units)
    methods = Methods(CRITERIA["gradient"], CRITERIA["obd"], price, batches=batches)
    return Session(network, optim, task, policy, methods, lambda step: learning_rate, 5, history, controller.begin(policy))


def finish(session: Session) -> None:
    for _ in train(session):
        pass


def digest(session: Session) -> str:
    """Hash over every tensor of the network and its optimizer."""
    tensors = checkpoint.network_tensors(session.network)
    for name, parameter in session.network.module.named_parameters():
        tensors |= {f"{name}.{key}": value for key, value in session.optimizer.state[parameter].items() if isinstance(value, torch.Tensor)}
    return hashlib.sha256(b"".join(name.encode() + tensors[name].detach().numpy().tobytes() for name in sorted(tensors))).hexdigest()


@pytest.mark.parametrize(("price", "grown"), [(None, False), (8.0, False), (None, True)])
def test_training_ends_at_the_wanted_number_of_connections_and_has_learnt(price: float | None, grown: bool) -> None:
    session = make_session(History(), "adam", learning_rate=0.01, price=price, grown=grown)
    finish(session)
    topology = session.network.topology
    assert topology.connections == round(0.2 * (8 * 32 + 32 * 32 + 32 * 3))
    assert not unconnected(topology)
    assert evaluate(session.network, session.task.validation(), session.task.correct) > 0.55  # chance is a third


def by_density(kernel: str, case: KernelCase) -> float | None:
    """Times by which csr is worth its while below a density of 0.5."""
    return {"dense": 0.5, "csr": case.density}.get(kernel)


def test_kernels_follow_the_density_and_a_resumed_training_keeps_those_that_were_not_due(tmp_path: Path) -> None:
    def started() -> Session:
        session = make_session(History(), "adam")
        session.methods = replace(session.methods, timings=by_density)
        edits.choose_kernels(session.network, by_density, 50)
        return session

    session = started()
    found = {path: {layer.kernel} for path, layer in session.network.layers.items()}
    for progress in train(session):
        if progress.step == 45:
            checkpoint.save_session(tmp_path, session)
            picked = session.network.picked
            assert any(  # the rule has been at work, and what it goes by is no function of the network
                seen.density != session.network.topology.layer(path).density for path, seen in picked.items()
            )
        for path, layer in session.network.layers.items():
            found[path].add(layer.kernel)
            assert (layer.kernel == "csr") <= (layer.density < 0.5 * 1.2)
            assert (layer.kernel == "dense") <= (layer.density > 0.5 * 0.8)
    assert {"dense", "csr"} in found.values()
    resumed = started()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    checkpoint.restore_session(resumed, saved)
    assert resumed.network.picked == picked
    finish(resumed)
    assert digest(resumed) == digest(session)
    assert resumed.network.picked == session.network.picked


def test_every_edit_leaves_one_event_and_the_events_add_up() -> None:
    history = History()
    session = make_session(history)
    before = session.network.topology.connections
    finish(session)
    added, removed = history.total("grow_connections", "add_units"), history.total("prune_connections", "remove_units")
    assert session.network.topology.connections == before + added - removed
    assert added > 0
    assert [event.step for event in history.events] == sorted(event.step for event in history.events)
    assert all(np.isfinite([event.loss_before, event.loss_after]).all() and event.why for event in history.events)
    frame = history.frame()
    assert frame["what"].iloc[0] == "prune_connections"
    assert set(frame["what"]) >= {"prune_connections", "grow_connections"}
    assert frame["connections_after"].iloc[-1] == round(0.2 * before)


@pytest.mark.parametrize("kernel", ["dense", "csr"])
def test_a_pruning_tells_the_density_of_every_layer_and_the_largest_weight_that_it_lost(kernel: str) -> None:
    session = make_session(History())
    network = session.network
    for share in (0.5, 0.5):  # the second one finds the weights in the kernel's storage
        network.use_kernels(lambda _: kernel, 16)
        before = {name: (layer.dense_weight().clone(), network.topology.layer(name).positions()) for name, layer in network.layers.items()}
        carry_out(session, controller.Prune(round(share * network.topology.connections), False, "half of them"))
        event = session.history.events[-1]
        for layer in network.topology.layers:
            weight, positions = before[layer.layer]
            gone = weight.reshape(-1)[np.setdiff1d(positions, layer.positions())]
            assert event.densities[layer.layer] == layer.density
            assert event.thresholds.get(layer.layer, 0.0) == (float(gone.abs().max()) if len(gone) else 0.0)
    assert set(session.history.frame().columns) >= {f"densities.{layer.layer}" for layer in network.topology.layers}


def test_growth_does_not_change_the_loss_and_is_not_asked_whether_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, probed = History(), History()
    finish(make_session(taken, grown=True))
    monkeypatch.setattr(edits, "_leaves_output", lambda session, decision: False)
    finish(make_session(probed, grown=True))
    grown = [event for event in probed.events if event.what in ("grow_connections", "add_units")]
    assert {event.what for event in grown} == {"grow_connections", "add_units"}
    for event in grown:
        assert event.loss_after == pytest.approx(event.loss_before, rel=1e-5)
    for one, other in zip(taken.events, probed.events, strict=True):
        assert one.loss_after == pytest.approx(other.loss_after, rel=1e-5)


@pytest.mark.parametrize("kernel", ["dense", "csr"])
@pytest.mark.parametrize("anew", [False, True])
def test_growth_takes_what_has_the_largest_gradients_in_a_pass_or_in_the_step_after_the_pruning(kernel: str, anew: bool) -> None:
    session = make_session(History(), kernel=kernel)
    few = schedules.constant(round(0.98 * session.network.topology.connections))  # so that no unit dies of it
    session.methods = replace(session.methods, pruning=CRITERIA["magnitude"], batches=int(anew))
    session.policy = replace(session.policy, connections=few, drop_fraction=schedules.constant(0.05))
    for progress in train(session):
        if progress.step == 10:
            break
    next_training(session)
    dense = copy.deepcopy(session.network)  # where all is grown, what is new has no weight yet: the network is the pruned one
    if not anew:
        assert session.history.events[-1].what == "prune_connections"
        assert session.stepped is None
        train_step(session)
        assert session.stepped is not None
        next_training(session)
    assert session.stepped is None
    assert session.network.records == ()
    dense.use_kernels(lambda _: "dense", 50)
    dense.set_connections(dict.fromkeys(dense.layers))
    inputs, targets = session.task.train_batch(10)
    session.task.loss(dense.train(not anew)(inputs), targets).backward()
    pruned, grown = session.history.events[-2:]
    assert (pruned.what, grown.what) == ("prune_connections", "grow_connections")
    layers = session.network.layers.items()
    # New weights are the ones without any step: no pruned connection has come back with its weight.
    new = {name: layer.positions.numpy()[layer.weight.detach().reshape(-1).numpy()[held(layer)] == 0] for name, layer in layers}
    scores = {name: layer.weight.grad.abs().reshape(-1).numpy() for name, layer in dense.layers.items()}
    absent = {name: np.setdiff1d(np.arange(scores[name].size), np.setdiff1d(layer.positions.numpy(), new[name])) for name, layer in layers}
    ranked = sorted((-scores[name][at], number, at) for number, name in enumerate(scores) for at in absent[name].tolist())
    chosen = {(number, at) for _, number, at in ranked[: grown.connections]}
    assert chosen == {(number, at) for number, name in enumerate(scores) for at in new[name].tolist()}


def test_kernels_are_chosen_and_units_divided_once_an_update_when_it_has_grown() -> None:
    session, divided, chosen = make_session(History(), batches=0), list[int](), list[int]()

    def timed(kernel: str, case: KernelCase) -> float | None:
        chosen.append(session.step)
        return None

    session.methods = replace(session.methods, timings=timed, divide=lambda network: divided.append(session.step))
    finish(session)
    grown = [event.step for event in session.history.events if event.what == "grow_connections"]
    assert {step % 10 for step in grown} == {1}
    assert divided == grown
    assert set(chosen) <= set(grown)
    assert chosen


def held(layer: SparseLayer) -> np.ndarray:
    """Where the weights of the connections stand in the layer's storage."""
    assert layer.positions is not None
    return layer.positions.numpy() if layer.storage == "dense" else np.arange(len(layer.positions))


def test_what_is_computed_otherwise_than_in_the_weights_precision_is_not_grown_by() -> None:
    session = make_session(History(), batches=0)
    assert session.grows_by_step
    session.autocast = torch.bfloat16
    assert not session.grows_by_step
    session.autocast = None
    session.network.compile(backend="eager")
    assert not session.grows_by_step


def test_a_training_has_at_least_one_batch_of_evidence() -> None:
    assert [Methods(CRITERIA["gradient"], CRITERIA["taylor"], batches=batches).passes for batches in (0, 1, 3)] == [1, 1, 3]
    with pytest.raises(ValueError, match="batches is -1, but must be at least 0"):
        Methods(CRITERIA["gradient"], CRITERIA["taylor"], batches=-1)


STOPS = (1, 37, 60, 61, 119)  # right before an update, the last of the schedules, and before its growth, where that waits for a step


@pytest.mark.parametrize(
    ("kernel", "optimizer", "batches", "stops"),
    [
        ("csr", "sgd", 0, STOPS),
        *[("dense", "sgd", 1, STOPS[1:2]), ("csr", "adam", 1, STOPS[3:]), ("dense", "adamw", 0, STOPS[3:4])],
        *[
            pytest.param(kernel, optimizer, batches, STOPS, marks=pytest.mark.slow)
            for kernel in ("dense", "csr")
            for optimizer in ("sgd", "adam", "adamw")
            for batches in (0, 1)
        ],
    ],
)
def test_a_resumed_training_equals_the_uninterrupted_one_bit_by_bit(
    tmp_path: Path, optimizer: str, kernel: str, batches: int, stops: tuple[int, ...]
) -> None:
    files = (tmp_path / "whole.jsonl", tmp_path / "saving.jsonl")
    whole, saving = (make_session(History(file), optimizer, grown=True, kernel=kernel, batches=batches) for file in files)
    finish(whole)
    for progress in train(saving):
        if progress.step in stops:
            checkpoint.save_session(tmp_path / f"{progress.step}", saving)
    assert digest(saving) == digest(whole)
    for stop in stops:
        tensors = checkpoint.read(tmp_path / f"{stop}" / f"{stop:08d}").tensors
        assert any(name.startswith("stepped/") for name in tensors) == (stop == 61 and batches == 0)
        history = tmp_path / f"{stop}.jsonl"
        shutil.copy(tmp_path / "saving.jsonl", history)  # what happened after the checkpoint will happen again
        second = make_session(History(history), optimizer, grown=True, kernel=kernel, batches=batches)
        saved = checkpoint.latest(tmp_path / f"{stop}")
        assert saved is not None
        checkpoint.restore_session(second, saved)
        finish(second)
        assert digest(second) == digest(whole)
        assert history.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_parts_are_brought_back(tmp_path: Path) -> None:
    session = make_session(History(), price=8.0)
    finish(session)
    checkpoint.save_session(tmp_path, session)
    other = make_session(History(), price=8.0)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    checkpoint.restore(other.network, saved)
    assert session.network.parts is not None
    assert other.network.parts is not None
    for space, parts in session.network.parts.items():
        np.testing.assert_array_equal(other.network.parts[space], parts)


@pytest.mark.parametrize("harm", ["truncate", "flip", "json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, harm: str) -> None:
    session = make_session(History())
    for progress in train(session):
        if progress.step in (20, 40):
            checkpoint.save_session(tmp_path, session)
    tensors, description = tmp_path / "00000040" / "tensors.safetensors", tmp_path / "00000040" / "checkpoint.json"
    harms: dict[str, Callable[[], object]] = {
        "truncate": lambda: tensors.write_bytes(tensors.read_bytes()[:-9]),
        "flip": lambda: tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f"),
        "json": lambda: description.write_text("{"),
    }
    harms[harm]()
    with pytest.raises(checkpoint.CheckpointError, match="use an earlier"):
        checkpoint.read(tmp_path / "00000040")
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.meta["extra"]["training"]["step"] == 20


def test_when_all_checkpoints_are_damaged_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save_session(tmp_path, make_session(History()))
    (tmp_path / "00000000" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="holds 1 checkpoints, but none is whole; remove"):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    session = make_session(History())
    checkpoint.save(tmp_path / "one", session.network)
    other = Network(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(1, 8))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match="start from the network"):
        checkpoint.restore(other, checkpoint.read(tmp_path / "one"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_checkpoint_of_another_kind_of_training_is_refused(tmp_path: Path) -> None:
    """Of a schedule where a tolerance was wanted, of a network without a training, of another version."""
    saved = checkpoint.capture_session(make_session(History()))
    other = make_session(History(), learning_rate=0.01)
    other.policy = controller.Tolerance(1.0, 0, 5, 20)
    other.state = controller.begin(other.policy)
    before = checkpoint.capture_session(other)
    lone = checkpoint.capture(other.network, other.optimizer)
    later = replace(saved, meta={**saved.meta, "schema_version": checkpoint.SCHEMA_VERSION + 1})
    for given, message in (
        (saved, "checkpoint has of the training .*next_update"),
        (lone, r"checkpoint has of the training \[\], but must have"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=message):
            checkpoint.restore_session(other, given)
    with pytest.raises(checkpoint.CheckpointError, match="schema_version is 2, but must be 1; use the version of grow that wrote"):
        checkpoint.restore(other.network, later)
    after = checkpoint.capture_session(other)
    assert after.meta == before.meta
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in after.tensors.items())


def test_a_scheduler_that_wants_a_metric_is_refused() -> None:
    session = make_session(History())
    session.learning_rate = torch.optim.lr_scheduler.ReduceLROnPlateau(session.optimizer)
    with pytest.raises(ValueError, match=r"^learning_rate is a ReduceLROnPlateau, but must be a scheduler that goes by the step alone"):
        finish(session)


def test_a_diverging_training_says_so() -> None:
    with pytest.raises(DivergedError, match=r"^loss is (nan|inf) at step \d+, but must be finite; lower learning_rate"):
        finish(make_session(History(), learning_rate=1e6))


@pytest.mark.parametrize("name", ["uniform", "erk"])
def test_every_edit_leaves_each_layer_what_the_allocation_gives_it(name: str) -> None:
    session = make_session(History())
    session.methods = replace(session.methods, allocation=allocate.allocation(name))
    shapes = {layer.layer: layer.shape for layer in session.network.topology.layers}
    for decision in (controller.Prune(700, False, "test"), controller.Grow(200, {}, "test")):
        carry_out(session, decision)
        topology = session.network.topology
        wanted = allocate.shares(shapes, topology.connections, allocate.allocation(name), {})
        assert {layer.layer: layer.count for layer in topology.layers} == wanted
    assert session.network.topology.connections == session.network.topology.possible - 500


@pytest.mark.parametrize("name", [None, "erk"])
def test_a_kept_layer_is_left_as_it_is_while_the_whole_network_meets_its_density(name: str | None) -> None:
    session = make_session(History(), grown=False)
    last = list(session.network.layers)[-1]
    session.methods = replace(session.methods, kept=frozenset({last}), allocation=None if name is None else allocate.allocation(name))
    units = session.network.topology.units
    finish(session)
    topology = session.network.topology
    assert topology.layer(last).index is None
    assert topology.units[topology.layer(last).source[0].space] == units[topology.layer(last).source[0].space]
    assert topology.connections == round(0.2 * (8 * 32 + 32 * 32 + 32 * 3))


def test_a_layer_that_is_not_trained_is_left_as_it_is_by_criteria_that_look_at_gradients() -> None:
    session = make_session(History())
    session.methods = replace(session.methods, growth=CRITERIA["gradient"], pruning=CRITERIA["taylor"])
    still = session.network.layers["5"].requires_grad_(False)
    before = still.dense_weight().clone()
    finish(session)
    assert session.network.topology.layer("5").index is None
    assert torch.equal(session.network.layers["5"].dense_weight(), before)
    assert session.network.topology.layer("0").index is not None


@pytest.mark.parametrize(("first", "second"), [(200, 100), (1, 299)])
def test_accuracy_on_some_of_the_validation_samples_is_that_of_just_those_however_they_are_batched(first: int, second: int) -> None:
    samples = rings(first + second, 2)
    batches = [(samples.inputs[:first], samples.targets[:first]), (samples.inputs[first:], samples.targets[first:])]
    drawn = {seed: torch.cat([inputs for inputs, _ in some(iter(batches), 30, first + second, seed)]) for seed in (0, 1)}
    found = (samples.inputs[:, None] == drawn[0]).all(2).any(1)  # (N,)
    assert torch.equal(samples.inputs[found], drawn[0])  # in their order, each once
    assert len(drawn[0]) == len(drawn[1]) == 30
    assert not torch.equal(drawn[0], drawn[1])
    session = make_session(History())
    session.network.eval()
    right = (session.network(drawn[0]).argmax(1) == samples.targets[found]).float().mean().item()
    assert accuracy(session, some(iter(batches), 30, first + second, 0)) == pytest.approx(right)
    everything = some(session.task.validation(), 300, 300, 0)
    assert accuracy(session, everything) == accuracy(session)


def test_torchs_scheduler_sets_the_rate_and_is_resumed(tmp_path: Path) -> None:
    def scheduled(history: History) -> Session:
        session = make_session(history)
        session.learning_rate = torch.optim.lr_scheduler.StepLR(session.optimizer, 30, gamma=0.5)
        return session

    whole = scheduled(History(tmp_path / "whole.jsonl"))
    finish(whole)
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**4)
    first = scheduled(History(tmp_path / "resumed.jsonl"))
    for progress in train(first):
        if progress.step == 47:
            checkpoint.save_session(tmp_path / "saved", first)
            break
    second = scheduled(History(tmp_path / "resumed.jsonl"))
    saved = checkpoint.latest(tmp_path / "saved")
    assert saved is not None
    checkpoint.restore_session(second, saved)
    finish(second)
    assert digest(second) == digest(whole)


def test_the_loss_is_probed_once_between_two_edits_of_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    session, asked, probed = make_session(History()), [], []
    validation, loss = session.task.validation, session.task.loss

    def noted(self: Classification, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():  # neither training nor evidence
            probed.append(session.step)
        return loss(outputs, targets)

    monkeypatch.setattr(type(session.task), "validation", lambda self: asked.append(session.step) or validation())
    monkeypatch.setattr(type(session.task), "loss", noted)
    finish(session)
    events = session.history.events
    changing = [event for event in events if event.what != "grow_connections" and not event.why.startswith("no path")]
    assert len(probed) == len(changing) + len({event.step for event in events})  # not twice an event
    assert len(asked) == 1  # going through the validation data may cost much more than the loss
    for one, other in pairwise(events):
        if one.step == other.step:
            assert other.loss_before == one.loss_after


def test_a_layer_is_inserted_while_training_goes_on_and_the_loss_stays(tmp_path: Path) -> None:
    def inserting(history: History) -> Session:
        session = make_session(history)
        assert isinstance(session.policy, controller.Policy)
        insertion = Insertion(session.network.topology.hidden[-1].name, "deeper", "identity")
        session.policy = replace(session.policy, insertions=((25, insertion),))
        return session

    whole = inserting(History(tmp_path / "whole.jsonl"))
    finish(whole)
    (event,) = (event for event in whole.history.events if event.what == "insert_layer")
    assert event.step == 30  # the first update from 25 on
    assert event.loss_after == pytest.approx(event.loss_before, rel=1e-5)
    assert "deeper" in whole.network.layers
    first = inserting(History(tmp_path / "other.jsonl"))
    for progress in train(first):
        if progress.step == 43:
            checkpoint.save_session(tmp_path / "saved", first)
            break
    second, saved = inserting(History(tmp_path / "other.jsonl")), checkpoint.latest(tmp_path / "saved")
    assert saved is not None
    checkpoint.restore_session(second, saved)
    finish(second)
    assert digest(second) == digest(whole)


def test_units_go_by_criterion_where_the_schedule_wants_fewer() -> None:
    session = make_session(History())
    space = session.network.topology.hidden[0]
    norms = session.network.layers[session.network.topology.producers(space.name)[0].layer].dense_weight().norm(dim=1)
    carry_out(session, controller.PruneUnits({space.name: 5}, "test"))
    kept = session.network.layers[session.network.topology.producers(space.name)[0].layer].dense_weight().norm(dim=1)
    assert torch.equal(kept, norms[norms.argsort()[5:].sort().values])
    assert dict(session.history.events[-1].units) == {space.name: 5}


def test_merging_without_a_bound_is_refused_and_changes_nothing() -> None:
    session = make_session(History())
    before = checkpoint.capture_followed(session).tensors
    with pytest.raises(ValueError, match="apoptosis is None, but must be a bound"):
        carry_out(session, controller.Merge("test"))
    after = checkpoint.capture_followed(session).tensors
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_pruning_that_would_cut_the_network_is_tried_with_half_as_much() -> None:
    session = make_session(History())
    before = session.network.topology.connections
    carry_out(session, controller.Prune(before, False, "all of them"))
    (event,) = session.history.events
    assert 0 < event.connections < before
    assert not any(len(dead) == session.network.topology.units[space] for space, dead in unconnected(session.network.topology).items())
