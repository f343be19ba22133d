"""Accept or take back: the bound holds at the end, and what is taken back is exactly what was accepted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from grow import checkpoint, controller, train
from grow.average import WeightAverage
from grow.controller import Accept, Prune, PruneUnits, Report, Restore, Stop, Tolerance, Train
from grow.criteria import CRITERIA
from grow.history import History
from grow.network import Network
from grow.optim import make
from grow.session import Methods, Session
from grow.task import Classification, Samples
from grow.tolerance import noise

pytestmark = pytest.mark.filterwarnings("ignore:points is .* two standard errors")


def followed(policy: Tolerance, connections: int, accuracy: Callable[[int], float]) -> tuple[list[controller.Decision], int]:
    """Carry decisions out on a bare number of connections, whose accuracy is a function of it: decisions, connections left."""
    report, state = Report(0, connections, {}, unconnected=False), controller.begin(policy)
    accepted, course = connections, []
    while not course or not isinstance(course[-1], Stop):
        judged = accuracy(report.connections) if controller.needs_accuracy(state, report.step) else None
        decision, state = controller.decide(policy, replace(report, accuracy=judged), state)
        match decision:
            case Train(until):
                assert until > report.step
                report = replace(report, step=until)
            case Prune(connections=count):
                report = replace(report, connections=max(1, report.connections - count))
            case Accept():
                accepted = report.connections
            case Restore():
                report = replace(report, connections=accepted)
        course.append(decision)
    assert report.step <= policy.steps
    return course, report.connections


@given(
    points=st.floats(0, 20),
    breaking=st.integers(1, 1000),
    slope=st.floats(0, 1e-3),
    share=st.floats(0.02, 0.9),
    warm_up=st.integers(0, 30),
    steps=st.integers(30, 500),
)
def test_what_is_left_is_within_the_tolerance_whatever_the_network(
    points: float, breaking: int, slope: float, share: float, warm_up: int, steps: int
) -> None:
    def accuracy(connections: int) -> float:
        return 0.95 - slope * (1000 - connections) - (0.5 if connections < breaking else 0)

    policy = Tolerance(points, warm_up, retrain=5, steps=steps, share=share, least_share=0.02)
    course, left = followed(policy, 1000, accuracy)
    assert accuracy(left) >= 0.95 - points / 100 - 1e-9
    assert sum(isinstance(decision, Restore) for decision in course) <= policy.rejections


def test_the_share_is_halved_until_the_edge_is_found() -> None:
    # Down to 500 nothing is lost, below all is: from 1000 by a half, then nothing by a half, a quarter, an eighth is accepted.
    course, left = followed(
        Tolerance(0.5, 10, retrain=1, steps=100, share=0.5, least_share=0.1), 1000, lambda count: 0.9 if count >= 500 else 0.1
    )
    assert [decision.connections for decision in course if isinstance(decision, Prune)] == [500, 250, 125, 62]
    assert left == 500
    assert course[-1] == Stop("less than 10.0 % would be proposed")


def test_a_network_worse_than_the_given_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^reference is 99.00%, but must be at most 0.5 points above what the network has, 90.00%; train"):
        followed(Tolerance(0.5, 5, retrain=1, steps=10, reference=0.99), 10, lambda count: 0.9)


def test_units_of_the_named_spaces_are_proposed() -> None:
    policy = Tolerance(1, 0, retrain=5, steps=20, share=0.25, spaces=("a", "b"))
    report = Report(0, 99, {"input": 9, "a": 8, "b": 1, "output": 3}, False, accuracy=0.9)
    decision, state = controller.decide(policy, report, controller.begin(policy))
    assert isinstance(decision, Accept)
    assert controller.decide(policy, report, state)[0] == PruneUnits({"a": 2}, "25.0 % of what remains")


def test_the_noise_of_the_validation_set_is_two_standard_errors() -> None:
    assert noise(0.985, 10_000) / 2 == pytest.approx(0.12, abs=0.002)  # references, section 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": -1.0}, "points is -1.0, but must be at least 0"),
        ({"points": float("nan")}, "points is nan, but must be at least 0"),
        ({"retrain": 0}, "retrain is 0, but must be at least 1"),
        ({"steps": 4}, "steps is 4, but must be at least warm_up, 5"),
        ({"share": 1.0}, r"share is 1.0, but must be in \(0, 1\)"),
        ({"share": 0.01}, r"least_share is 0.02, but must be in \(0, 0.01\]"),
        ({"rejections": 0}, "rejections is 0, but must be at least 1"),
        ({"reference": 97.5}, r"reference is 97.5, but must be in \[0, 1\]; pass the accuracy as a share"),
    ],
)
def test_contradictions_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Tolerance(**{"points": 1.0, "warm_up": 5, "retrain": 5, "steps": 50, **options})  # type: ignore[arg-type]


def blobs(samples: int, seed: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    return Samples(torch.randn(samples, 6, generator=generator) + 2.0 * nn.functional.one_hot(targets, 6), targets)


def make_session(history: History, optimizer: str = "adam", points: float = 8.0, kernel: str = "dense") -> Session:
    torch.manual_seed(0)
    task = Classification(blobs(400, 1), blobs(200, 2), lambda: blobs(200, 3), batch_size=40, seed=4)
    module = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3))
    network = Network(module, torch.zeros(1, 6))
    network.use_kernels(lambda case: kernel, 40)
    optim = make(optimizer, network.parameters(), 0.01)  # type: ignore[arg-type]
    network.attach(optim)
    average = WeightAverage(network, 0.9)
    network.attach(average)
    policy = Tolerance(points, warm_up=20, retrain=5, steps=300, share=0.5, least_share=0.05)
    methods = Methods(CRITERIA["gradient"], CRITERIA["magnitude"])
    return Session(network, optim, task, policy, methods, None, 5, history, controller.begin(policy), average=average)


def everything(session: Session) -> dict[str, torch.Tensor]:
    return dict(checkpoint.capture_followed(session).tensors)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("kernel", ["dense", "csr"])
def test_what_is_taken_back_is_what_was_accepted_byte_for_byte(optimizer: str, kernel: str) -> None:
    session = make_session(History(), optimizer, points=0.0, kernel=kernel)
    accepted, restored, seen = {}, 0, len(session.history.events)
    original = train.carry_out

    def watched(session: Session, decision: controller.Edit, accuracy: float | None = None) -> None:
        nonlocal accepted, restored
        original(session, decision, accuracy)
        if isinstance(decision, Accept):
            accepted = everything(session)
        elif isinstance(decision, Restore):
            restored += 1
            found = everything(session)
            assert set(found) == set(accepted)
            for name, tensor in found.items():
                assert tensor.dtype == accepted[name].dtype
                assert torch.equal(tensor, accepted[name]), name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "carry_out", watched)
        for _ in train.train(session):
            pass
    assert restored >= 2
    assert len(session.history.events) > seen


def test_the_bound_holds_on_validation_data_at_the_end_and_much_was_removed() -> None:
    session = make_session(History(), points=6.0)
    for _ in train.train(session):
        pass
    reference = next(event.accuracy for event in session.history.events if event.what == "accept")
    assert reference is not None
    assert train.accuracy(session) >= reference - 0.06 - 1e-9
    assert session.network.topology.density < 0.6
    rejected = [event for event in session.history.events if event.what == "restore"]
    assert rejected  # the edge was found, not just the end of the steps
    assert all(event.accuracy is not None and event.accuracy < reference - 0.06 for event in rejected)


def test_events_add_up_with_what_was_taken_back() -> None:
    session = make_session(History(), points=6.0)
    before = session.network.topology.connections
    for _ in train.train(session):
        pass
    total = session.history.total
    assert session.network.topology.connections == before + total("restore") - total("prune_connections", "remove_units")


def test_a_resumed_search_equals_the_uninterrupted_one_bit_by_bit(tmp_path: Path) -> None:
    whole = make_session(History(tmp_path / "whole.jsonl"))
    for _ in train.train(whole):
        pass
    rejected = next(event.step for event in whole.history.events if event.what == "restore")
    for stop in (3, 22, rejected - 2, rejected + 2):
        first = make_session(History(tmp_path / f"{stop}.jsonl"))
        for progress in train.train(first):
            if progress.step == stop:
                checkpoint.save_session(tmp_path / f"{stop}", first)
            if progress.step == stop + 7:
                break
        second = make_session(History(tmp_path / f"{stop}.jsonl"))
        saved = checkpoint.latest(tmp_path / f"{stop}")
        assert saved is not None
        checkpoint.restore_session(second, saved)
        for _ in train.train(second):
            pass
        one, other = everything(second), everything(whole)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        assert (tmp_path / f"{stop}.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_tolerance_below_the_noise_is_told() -> None:
    with pytest.warns(UserWarning, match=r"points is 0.1, but two standard errors of the accuracy on 200 validation samples are \d"):
        for _ in train.train(make_session(History(), points=0.1)):
            pass


def test_a_checkpoint_without_the_average_is_refused(tmp_path: Path) -> None:
    session = make_session(History())
    session.average = None
    checkpoint.save_session(tmp_path, session)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint has the followers \[\], but the training has \['average'\]"):
        checkpoint.restore_session(make_session(History()), saved)
