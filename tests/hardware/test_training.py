"""Training on several ranks while the network grows and is pruned: the same edits, weights and optimizer state as one process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from grow import checkpoint, controller, optim, schedules
from grow.average import WeightAverage
from grow.criteria import CRITERIA
from grow.editing.insertion import Insertion
from grow.follow import Follower
from grow.history import Event, History
from grow.movement import Movement
from grow.network import Network
from grow.session import Methods, Session
from grow.task import Classification, Samples
from grow.train import DivergedError, train
from hardware.execute.exchange import Peers
from hardware.execute.ranks import Rank, run_ranks
from hardware.execute.train import Parts, Training
from tests.contracts.replicas import check_replicas, copies

STEPS, INTERVAL = 36, 6


@dataclass(frozen=True)
class Case:
    """What is trained, and how it is divided."""

    strategy: str
    optimizer: optim.Name = "sgd"
    kernel: str = "dense"
    average: bool = False
    movement: bool = False
    grown: bool = False
    inserted: bool = False
    rotated: bool = False
    batches: int = 1
    idle: bool = False  # updates that change nothing
    convolutional: bool = False
    learning_rate: float = 0.05
    steps: int = STEPS


@dataclass(frozen=True)
class Outcome:
    events: list[Event]
    digest: str
    tensors: dict[str, torch.Tensor]
    losses: list[float]
    copies: Sequence[dict[str, torch.Tensor]] = ()  # what this rank itself holds, before every edit


CASES = [
    Case("units", rotated=True, batches=0),
    Case("units", idle=True, batches=0),
    Case("owt", convolutional=True),
    Case("units", "adam", grown=True, rotated=True),
    Case("data", "adam", "csr", grown=True, batches=0),
    Case("units", "sgd", "csr", average=True, movement=True),
    Case("data", "rmsprop", average=True, movement=True, inserted=True, batches=0),
]


def samples(count: int, seed: int, shape: tuple[int, ...]) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return Samples(inputs, (inputs.flatten(1)[:, 0] * inputs.flatten(1)[:, 1] > 0).long())


def module(convolutional: bool) -> nn.Module:
    if convolutional:
        layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 12)]
    else:
        layers = [nn.Linear(6, 14, bias=False), nn.BatchNorm1d(14), nn.ReLU(), nn.Linear(14, 12)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(12, 2)).double()


def rotate(network: Network) -> None:
    """Every unit moves to the other part."""
    assert network.parts is not None
    network.assign({space: 1 - part for space, part in network.parts.items()})


def make_session(case: Case, history: History) -> Session:
    """A small training whose every update removes and adds connections and, where ``grown``, adds units; where ``idle``, none does."""
    torch.manual_seed(0)
    shape = (1, 4, 4) if case.convolutional else (6,)
    train, valid, test = (samples(count, seed, shape) for seed, count in enumerate((300, 100, 10)))
    task = Classification(train, valid, lambda: test, batch_size=20, seed=4)
    network = Network(module(case.convolutional), torch.zeros(1, *shape, dtype=torch.float64))
    possible = network.topology.connections
    units = {}
    if case.grown:
        for space in network.topology.hidden:
            network.remove_units(space.name, np.arange(6, space.units))
            units[space.name] = schedules.linear(6, 11, 0, 24)
    network.assign({space.name: np.arange(space.units) % 2 for space in network.topology.hidden})
    network.use_kernels(lambda _: case.kernel, 20)
    optimizer = optim.make(case.optimizer, network.parameters(), case.learning_rate, weight_decay=1e-3)
    network.attach(optimizer)
    average = WeightAverage(network, 0.9) if case.average else None
    followers: dict[str, Follower] = {"movement": Movement(network)} if case.movement else {}
    for follower in [*followers.values(), *([] if average is None else [average])]:
        network.attach(follower)
    wanted = schedules.cubic(network.topology.connections, round(0.4 * possible), 0, 24)
    insertions = ((12, Insertion("3", "extra", "identity")),) if case.inserted else ()
    replaced = schedules.cosine(0.3, 30)
    if case.idle:
        wanted, replaced = schedules.constant(network.topology.connections), schedules.constant(0.0)
    policy = controller.Policy(case.steps, INTERVAL, min(30, case.steps), wanted, replaced, units, insertions=insertions)
    pruning = CRITERIA["movement" if case.movement else "magnitude"]
    methods = Methods(CRITERIA["gradient"], pruning, batches=case.batches, divide=rotate if case.rotated else None)
    return Session(
        network,
        optimizer,
        task,
        policy,
        methods,
        lambda step: case.learning_rate / (1 + step / 20),
        5,
        history,
        controller.begin(policy),
        average=average,
        followers=followers,
    )


def divided(count: int):  # type: ignore[no-untyped-def]
    """Labels of the session where they suit, units dealt out in turn otherwise."""

    def divide(network: Network) -> Parts:
        if network.parts is not None and count == 2:
            return network.parts
        return {space.name: np.arange(space.units) % count for space in network.topology.hidden}

    return divide


def outcome(session: Session, losses: list[float], held: Sequence[dict[str, torch.Tensor]] = ()) -> Outcome:
    taken = checkpoint.capture_session(session)
    tensors = {name: tensor for name, tensor in taken.tensors.items() if name != "random"}
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    return Outcome(session.history.events, hashlib.sha256(content).hexdigest(), tensors, losses, held)


def run_case(peers: Peers, case: Case, folder: Path | None, saved_at: int | None) -> Outcome:
    """Train a case to the end, from the last checkpoint in ``folder`` if there is one; save one at a step."""
    history = History(None if folder is None or peers.rank else folder / "history.jsonl")
    session = make_session(case, history)
    if folder is not None and peers.rank == 0 and (saved := checkpoint.latest(folder)) is not None:
        checkpoint.restore_session(session, saved)
    training = Training(session, peers, case.strategy if peers.count > 1 else "single", divided(peers.count))
    losses, held = [], []
    for step in training.steps():
        losses += training.losses()
        if step % INTERVAL == 0 and training._local is not None:
            held.append(copies(training._local.shard, training._local.optimizer))
        if step == saved_at and folder is not None:
            training.save(folder)
    return outcome(session, losses, held)


def train_all(rank: Rank, cases: Sequence[Case], folder: str | None, saved_at: int | None) -> list[Outcome]:
    peers = Peers(rank.number, rank.count)
    return [run_case(peers, case, None if folder is None else Path(folder) / str(n), saved_at) for n, case in enumerate(cases)]


def one_process(case: Case) -> Outcome:
    session = make_session(case, History())
    losses = [progress.loss for progress in train(session)]
    return outcome(session, losses)


def structure(event: Event) -> tuple[object, ...]:
    """All of an event but the losses, which are rounded otherwise on several ranks."""
    return event.step, event.what, event.connections, dict(event.units), event.why, event.connections_after


def check_same(found: Outcome, expected: Outcome, what: str) -> None:
    assert [structure(event) for event in found.events] == [structure(event) for event in expected.events], what
    assert found.losses == pytest.approx(expected.losses[-len(found.losses) :], abs=1e-9), what
    assert found.tensors.keys() == expected.tensors.keys(), what
    for name, tensor in expected.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                found.tensors[name], tensor, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{what}, {name}: {text}"
            )
        else:
            assert torch.equal(found.tensors[name], tensor), f"{what}, {name}"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for number in range(len(CASES)):
        (folder / str(number)).mkdir()
    return folder


@pytest.fixture(scope="module")
def on_two(checkpoints: Path) -> list[list[Outcome]]:
    """Every case on two ranks, saved on the way after the 20th step."""
    return run_ranks(train_all, CASES, str(checkpoints), 20, ranks=2)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_ranks_grow_and_prune_as_one_process_does(on_two: list[list[Outcome]], number: int) -> None:
    expected = one_process(CASES[number])
    whats = {event.what for event in expected.events}
    if CASES[number].idle:
        assert not whats
    else:
        assert {"prune_connections", "grow_connections"} <= whats
    assert ("add_units" in whats) == CASES[number].grown
    assert ("insert_layer" in whats) == CASES[number].inserted
    check_same(on_two[0][number], expected, str(CASES[number]))


def test_all_ranks_hold_the_same_training_bit_by_bit(on_two: list[list[Outcome]]) -> None:
    """Their own copies before every edit, and the whole that they take over after it."""
    for case, mine, others in zip(CASES, *on_two, strict=True):
        assert len(mine.copies) == len(others.copies) == STEPS // INTERVAL
        for number, held in enumerate(zip(mine.copies, others.copies, strict=True)):
            assert check_replicas(held, f"{case}, edit {number}")
        assert mine.digest == others.digest
        assert mine.losses == others.losses


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_what_two_ranks_saved_goes_on_on_any_number(on_two: list[list[Outcome]], checkpoints: Path, ranks: int) -> None:
    resumed = run_ranks(train_all, CASES, str(checkpoints), None, ranks=ranks)[0] if ranks > 1 else train_all_here(checkpoints)
    for case, found, expected in zip(CASES, resumed, on_two[0], strict=True):
        assert len(found.losses) == STEPS - 20
        check_same(found, expected, f"{case} on {ranks}")


def train_all_here(folder: Path) -> list[Outcome]:
    return [run_case(Peers(0, 1), case, folder / str(number), None) for number, case in enumerate(CASES)]


def test_autocast_and_compiled_networks_are_refused_on_ranks() -> None:
    session = make_session(Case("units"), History())
    session.network.compile(backend="eager")
    with pytest.raises(ValueError, match="network is compiled, but must not be for training on ranks"):
        Training(session, Peers(0, 2), "units")
    session.autocast = torch.bfloat16
    with pytest.raises(ValueError, match=r"autocast of the session is torch\.bfloat16, but must be None for training on ranks"):
        Training(session, Peers(0, 2), "units")


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning")
def test_on_one_rank_they_train_as_without_ranks() -> None:
    sessions = [make_session(Case("units", steps=INTERVAL + 2), History()) for _ in range(2)]
    for session in sessions:
        session.autocast = torch.bfloat16
        session.network.compile(backend="eager")
    losses = [progress.loss for progress in train(sessions[0])]
    training = Training(sessions[1], Peers(0, 1), "single")
    found = []
    for _ in training.steps():
        found += training.losses()
    assert found == losses
    assert len(losses) == INTERVAL + 2
    weights = [checkpoint.network_tensors(session.network) for session in sessions]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    session = make_session(Case("units", learning_rate=1e300), History())
    training = Training(session, Peers(0, 1), "single")
    with pytest.raises(DivergedError, match=r"loss is nan at step \d+, but must be finite"):
        for _ in training.steps():
            pass
