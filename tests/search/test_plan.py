import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import int64, nn

from hardware.execute.measure import Throughput
from hardware.execute.parcel import pack, unpack
from hardware.execute.ranks import RankError
from hardware.presets import preset
from hardware.profile import Profile
from hardware.profile.calibration import Calibration
from hardware.profile.key import key_of
from hardware.simulate import Span, Task, schedule
from search import planning
from search.cli.plan import _doubts, _row, plan
from search.errors import ConfigurationError
from search.example import example_of, shape_of
from search.terminal import say
from search.timeline import draw, rows_of


def test_the_smallest_usual_sample_that_a_network_reads_is_taken() -> None:
    grey = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 3))
    coloured = nn.Sequential(nn.Conv2d(3, 2, 11, stride=11), nn.MaxPool2d(9), nn.AdaptiveAvgPool2d(1))  # 32 is too small for it
    assert example_of(grey, "grey").shape == (1, 1, 28, 28)
    assert example_of(coloured, "coloured").shape == (1, 3, 224, 224)
    assert example_of(nn.Linear(7, 2), "linear").shape == (1, 7)
    assert example_of(nn.Embedding(5, 2), "words").dtype == int64


def test_a_sample_that_a_network_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="input is 3x4, but must be what network 'linear' reads"):
        example_of(nn.Linear(7, 2), "linear", (3, 4))
    with pytest.raises(ConfigurationError, match="input is not given, but must be for network 'unknown'"):
        example_of(nn.ReLU(), "unknown")


@pytest.mark.parametrize("text", ["", "3x", "3x0x4", "-1", "3,4"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be the shape of one sample"):
        shape_of(text)


def test_a_task_is_drawn_on_its_devices_or_on_its_way() -> None:
    def rows(*resources: str) -> list[str]:
        return rows_of(Span(Task("t", "communication", 1.0, resources), 0.0, 1.0))

    assert rows("device 0", "device 1") == ["device 0", "device 1"]
    assert rows("out 0", "link 0>1", "in 1") == ["link 0>1"]
    assert rows("out 0", "in 0", "out 1", "in 1") == ["device 0 sends", "device 1 sends"]


def test_the_picture_needs_nothing_but_itself_and_names_every_task(tmp_path: Path) -> None:
    line = schedule([Task("fc1", "forward", 0.25, ("device 0",)), Task("fc1 halo", "communication", 0.5, ("link 0>1",), (0,), (), 4096)])
    draw(line, "a step", tmp_path / "timeline.html")
    text = (tmp_path / "timeline.html").read_text()
    assert "<script src=" not in text
    assert "fc1, forward: 250 ms from 0 ms" in text
    assert "fc1 halo, communication: 500 ms from 250 ms, 4,096 bytes" in text


def test_a_plan_for_a_machine_elsewhere_is_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "step.html"
    assert plan(network="lenet-5", gpus=4, hardware="nvlink-8", picture=picture, json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["word"], found["measured_s"], found["input"]) == ("simulated", None, [1, 28, 28])
    assert {"single", "data", "model", "owt"} <= {candidate["strategy"] for candidate in found["candidates"]}
    assert found["predicted_s"] == min(candidate["predicted_s"] for candidate in found["candidates"])
    assert len(found["link_bytes"]) == len(found["device_memory_bytes"]) == found["devices"]
    assert picture.stat().st_size > 1e6  # plotly itself is inside


SMALL = planning.Drawn("lenet-300-100", initial="erk", density=0.1, least_units=2)


def here() -> Profile:
    """A profile that says that it is of this machine, whose workers are of the CPU."""
    devices = tuple(replace(device, kind="cpu") for device in preset("pcie-2").devices)
    return replace(preset("pcie-2"), devices=devices, key=key_of(devices, "float32"))


@pytest.mark.slow
def test_candidates_are_timed_on_networks_that_the_ranks_draw_themselves(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "SECONDS_PER_CANDIDATE", 0.1)  # in a budget that is enough for all of them, whatever the load
    subject = planning.subject(SMALL, 32)
    found = planning.planned(subject, here(), 2, 500.0, say)
    assert {candidate.devices for candidate in found.candidates} == {1, 2}
    timed = [candidate for candidate in found.candidates if candidate.measured_s is not None]
    assert timed == sorted(timed, key=lambda candidate: candidate.seconds) == list(found.candidates[: len(timed)])
    assert {"single", "data", "model", "owt"} <= {candidate.name for candidate in timed}
    told = capfd.readouterr().err
    assert all(f"grow: timed {planning.named(candidate)}: " in told for candidate in timed)
    again = planning.timed_job(unpack(pack(planning.Timed.of(subject, found.candidates[0])))).network
    assert again.topology.connections == subject.network.topology.connections
    assert all(torch.equal(tensor, subject.network.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_without_time_nothing_is_timed_and_with_little_it_is_said_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, told, asked = planning.subject(SMALL, 32), list[str](), list[str]()
    assert all(candidate.measured_s is None for candidate in planning.planned(subject, here(), 2, 1.0, told.append).candidates)
    assert [line.partition(":")[0] for line in told] == ["nothing is timed"]

    def first(budget_s: float, make: object, jobs: object, names: list[str], *others: object, **more: object) -> list[Throughput | None]:
        asked[:] = names
        return [Throughput(32.0, 32.0, 32.0, 1.0, 0, 0) if place < timed else None for place in range(len(names))]

    monkeypatch.setattr(planning, "measure_within", first)
    for timed in (1, 3, 4, 5):
        told.clear()
        found = planning.planned(subject, here(), 2, 30.0, told.append)
        assert (planning.named(found.best), found.best.measured_s) == (asked[0], 1.0)
        assert told[0].startswith(f"timing {len(asked)} candidates, which would take about ")
        left_out = [name for name in asked[timed:] if f"{name} (predicted" in told[-1]]
        assert left_out == asked[timed:]
        assert told[-1].startswith("not timed within the budget of 30 s: ") == bool(left_out)


def test_where_the_clock_fails_the_plan_is_as_predicted_unless_a_rank_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, told, error = planning.subject(SMALL, 32), list[str](), RankError("rank 1 of 2 was killed by SIGKILL")

    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(planning, "measure_within", fail)
    assert planning.planned(subject, here(), 2, 60.0, told.append).best.measured_s is None
    assert told[-1] == "the clock failed, so the plan is as predicted: rank 1 of 2 was killed by SIGKILL"
    error.refused = True
    with pytest.raises(RankError):
        planning.planned(subject, here(), 2, 60.0, told.append)


def test_every_prediction_beyond_the_calibrated_range_is_marked_with_the_reason() -> None:
    low, high = {"batch": 16.0, "devices": 1.0}, {"batch": 64.0, "devices": 2.0}
    profile = replace(here(), calibration=Calibration("now", 30, 0.05, 0.2, 0.95, ("single", "data"), low, high))
    for batch, outside in ((32, {"model", "owt", "mixed"}), (128, {"single", "data", "model", "owt", "mixed"})):
        subject = planning.subject(SMALL, batch)
        document = planning.document(subject, profile, planning.planned(subject, profile, 2, 0.0, lambda _: None), 2)
        candidates: Any = document["candidates"]
        assert {candidate["strategy"] for candidate in candidates if candidate["beyond"]} == outside
        assert all(_row(candidate)[2].endswith("*") == bool(candidate["beyond"]) for candidate in candidates)
        told = _doubts(document)
        assert ("batch is 128, calibrated 16 to 64" in told) == (batch == 128)
        assert "owt on 2" in told["strategy is 'owt', calibrated single, data"]
    assert told["batch is 128, calibrated 16 to 64"] == "all candidates"


def test_a_plan_is_shown_with_the_named_strategies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(network="lenet-300-100", gpus=2, hardware="pcie-2", picture=tmp_path / "step.html") == 0
    shown = capsys.readouterr()
    assert "the input of lenet-300-100 is taken to be 784" in shown.err
    assert all(word in shown.out for word in ("single", "data", "model", "owt", "simulated ms", "MB from", "MB simulated", "step.html"))


def test_a_plan_for_a_seed_topology_is_saved_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "plan.json"
    assert plan(network="lenet-300-100", gpus=2, hardware="pcie-2", density=0.05, save=saved, picture=tmp_path / "step.html") == 0
    assert "lenet-300-100 at density 5 %" in capsys.readouterr().out
    found = json.loads(saved.read_text())
    assert found["density"] == pytest.approx(0.05, rel=0.01)
    assert found["connections"] == round(found["density"] * (784 * 300 + 300 * 100 + 100 * 10))
    assert asdict(planning.read(saved)) == {name: found[name] for name in ("network", "devices", "layouts")}
    with pytest.raises(ConfigurationError, match=r"density is 0\.5, but must be 1 where --initial is dense"):
        plan(network="lenet-5", initial="dense", density=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "lenet-5", "density": 0.0}, r"density is 0.0, but must be in \(0, 1\]"),
        ({"network": "lenet-5", "save": Path("a/b.json")}, "save is 'a/b.json', but must be in a folder that exists"),
        ({"network": "alexnot"}, "network is 'alexnot', but must be an installed start network"),
        ({"network": "lenet-5", "gpus": 0}, "gpus is 0, but must be at least 1"),
        ({"network": "lenet-5", "gpus": 9, "hardware": "nvlink-8"}, "gpus is 9, but must be in 1..8"),
        ({"network": "lenet-5", "hardware": "absent.json"}, "hardware is 'absent.json', but must be a file"),
        ({"network": "lenet-5", "input": "3x"}, "input is '3x', but must be the shape of one sample"),
        ({"network": "lenet-5", "picture": Path("step.png")}, r"picture is 'step.png', but must end in \.html, .*; choose another"),
        ({"network": "lenet-5", "picture": Path("a/b.html")}, "picture is 'a/b.html', but must be in a folder that exists"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        plan(**arguments)
    assert list(tmp_path.iterdir()) == []
