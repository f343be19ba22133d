"""The page of a run: what it says is what the run holds, and nothing in a run is taken for markup."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from grow.network import Network
from hardware.partition import Partition, communication_volume
from hardware.workload import Workload
from search import load_run
from search.cli.report import report as write_report
from search.options import Options
from search.page import _command, charts, network, report
from search.page.markup import Rows, figure, table, text
from search.results import RunDocument
from tests.search.chromium import browser, executable, pixels
from tests.search.conftest import Grow

Finished = tuple[Path, dict[str, Any], str]

WIDTHS = (1280, 390)
needs_chromium = pytest.mark.skipif(executable() is None, reason="no chromium, chromium-browser or google-chrome on the path")


@pytest.fixture(scope="module")
def page(digits: Finished) -> str:
    return report(load_run(digits[0]))


def body(page: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


# ---- the page ----


def test_the_page_names_what_the_run_found_and_fetches_nothing(page: str, digits: Finished) -> None:
    said = body(page)
    for heading in ("The front", "How they grew", "Predicted and measured", "What mattered", "Failures", "The run"):
        assert f"{heading}</h2>" in said
    for number in digits[1]["pareto"]:
        trial = digits[1]["trials"][number]
        assert text(f"{100 * trial['accuracy']:.2f} %") in said
    assert not re.findall(r'(?:src|href)="(?!#|data:)', said)  # nothing is loaded, and every link stays on the page
    assert page.count("plotly.js v") == 1
    assert len(page) < 8e6


def test_every_figure_has_an_alternative_text_a_caption_and_a_valid_chart(page: str) -> None:
    figures = re.findall(r"<figure>(.*?)</figure>", page, flags=re.DOTALL)
    assert len(figures) > 5
    for inner in figures:
        assert re.search(r'role="img" aria-label="[^"]{20,}"', inner)
        assert re.search(r"<figcaption>[^<]{20,}", inner)
        chart = re.search(r'<script type="application/json">(.*?)</script>', inner)
        if chart is not None:
            go.Figure(json.loads(chart[1]))  # plotly refuses what it does not know


def test_nothing_in_a_run_is_taken_for_markup() -> None:
    hostile = "</script><script>alert(1)</script>"
    assert "<script>alert" not in table(hostile, Rows((hostile,), [(hostile,)]))
    drawn = figure(hostile, hostile, {"data": [{"name": hostile}], "layout": {}})
    assert "<script>alert" not in drawn
    assert drawn.count("</script>") == 1
    inside = re.search(r'json">(.*)</script>', drawn)
    assert inside is not None
    assert json.loads(inside[1])["data"][0]["name"] == hostile


def test_a_run_without_a_usable_trial_says_so(digits: Finished) -> None:
    run = load_run(digits[0])
    found: RunDocument = {**run.document, "trials": [], "pareto": [], "reference": None, "hypervolume": None, "hypervolumes": []}
    run.__dict__["document"] = found  # as of a run that has just begun
    said = body(report(run))
    assert "Nothing to show yet" in said
    assert "No trial has ended with a network yet" in said


@pytest.mark.parametrize(("damaged", "left"), [("checkpoint", "Course of the training"), ("metrics.jsonl", "After training")])
def test_of_a_damaged_trial_the_rest_is_shown(damaged: str, left: str, digits: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits[0], run)
    for folder in (run / "trials").iterdir():
        if damaged == "checkpoint":
            shutil.rmtree(folder / damaged, ignore_errors=True)
        else:
            (folder / damaged).write_text('{"step": "<b>far</b>"}\n{"density": []}\n')
    page = report(load_run(run))
    assert "No picture: " in body(page)
    assert left in body(page)
    assert "<b>far" not in page


def test_the_command_writes_the_page_and_says_where(digits: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(str(digits[0]), output=tmp_path / "page.html")
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "options",
    [
        Options(study="digits", gpus=2),
        Options(study="digits", gpus=4, gpus_per_trial=2, early_stopping=True, sampler="nsga2", tolerance=2.5, hardware="pcie-4", trials=9),
        Options(study="mnist", gpus=1, device="cpu", seed=3, network="lenet-5", settings={"steps": 40, "learning_rate": 0.05}),
    ],
)
def test_the_command_that_is_shown_asks_for_what_the_run_was_asked(options: Options, grow: Grow, tmp_path: Path) -> None:
    program, *words = shlex.split(_command(options))
    asked = grow(*words, "--print-config", "--json", cwd=tmp_path)
    assert (program, asked.returncode) == ("grow", 0), asked.stderr
    found = {name: value["value"] for group in json.loads(asked.stdout)["configuration"].values() for name, value in group.items()}
    expected = {name: value for name, value in asdict(options).items() if name != "settings"} | dict(options.settings)
    assert found.items() >= expected.items()


# ---- its charts ----


def test_every_growth_and_pruning_is_marked_where_the_density_then_was(digits: Finished) -> None:
    run = load_run(digits[0])
    history = run.history[run.history["trial"] == 2]
    events = [json.loads(line) for line in (digits[0] / "trials" / "0002" / "history.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (digits[0] / "trials" / "0002" / "metrics.jsonl").read_text().splitlines()]
    traces = {trace["name"]: trace for trace in charts.course(metrics, events, 0.9)["data"]}
    for name, what in (("connections grown", "grow_connections"), ("connections pruned", "prune_connections")):
        expected = history[history["what"] == what]
        assert traces[name]["x"] == expected["step"].tolist()
        assert traces[name]["y"] == pytest.approx((100 * expected["density_after"]).tolist())
    layers = charts.layers(metrics, events)
    assert layers is not None
    assert all(trace["x"][-1] == metrics[-1]["step"] for trace in layers["data"] if trace["yaxis"] == "y")
    sparsity = {trace["name"]: trace["y"] for trace in layers["data"] if trace["yaxis"] == "y"}
    last = history.iloc[-1]
    assert {name: values[-1] for name, values in sparsity.items()} == pytest.approx(
        {layer.layer: 100 * (1 - last[f"densities.{layer.layer}"]) for layer in run.network(2).topology.layers}
    )


def test_importances_find_the_parameter_that_decides() -> None:
    import optuna

    study = optuna.create_study(directions=("maximize", "maximize"), sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: (trial.suggest_float("decides", 0, 1), trial.suggest_float("idle", 0, 1) * 0 + 1), n_trials=40)
    found = charts.importances(study.trials)
    assert next(iter(found)) == "decides"
    assert found["decides"][0] > 0.9
    assert charts.importances(study.trials[:3]) == {}


# ---- its pictures ----


def divided() -> tuple[Network, dict[str, Any]]:
    """8 -> 6 -> 4, units in turns on two devices."""
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), torch.zeros(1, 3))
    parts = {space.name: np.arange(space.units) % 2 for space in net.topology.hidden}
    inside = [row * 8 + column for row in range(6) for column in range(8) if row % 2 == column % 2]
    crossing = [1, 3]  # into unit 0, which lies on device 0, from units 1 and 3, which lie on device 1
    net.set_connections({"2": np.array(sorted(inside + crossing))})
    net.assign(parts)
    return net, parts


def test_units_of_one_device_stand_together_and_bins_never_mix_devices() -> None:
    for most in (2, 3, 5, 8):
        found = network.binned(np.arange(8) % 2, most)
        assert found.sizes.sum() == 8
        for number, part in enumerate(found.part.tolist()):
            assert set(np.flatnonzero(found.bin == number) % 2) == {part}


def test_a_matrix_of_single_units_is_the_layer_sorted_by_device() -> None:
    net, parts = divided()
    share, rows, columns = network.densities(net.topology, net.topology.layer("2"), parts)
    mask = (net.layers["2"].dense_weight() != 0).numpy()
    assert (share == mask[np.ix_(np.argsort(parts["2"], kind="stable"), np.argsort(parts["0"], kind="stable"))]).all()
    assert share[:3, 4:].sum() == 2  # what crosses lies off the diagonal
    assert share[3:, :4].sum() == 0
    assert rows.part.tolist() == [0] * 3 + [1] * 3
    coarse, rows, columns = network.densities(net.topology, net.topology.layer("2"), parts, most=2)
    assert coarse.tolist() == [[1.0, 2 / 12], [0.0, 1.0]]
    assert np.sum(coarse * np.outer(rows.sizes, columns.sizes)) == net.topology.layer("2").count


def test_units_sent_over_every_link_add_up_to_the_communication_volume() -> None:
    net, parts = divided()
    work, partition = Workload.of(net.topology), Partition(parts, 2)
    sent = network.units_sent(work, partition)
    assert sent.tolist() == [[0, 0], [2, 0]]
    assert sent.sum() == communication_volume(work, partition)


def test_the_picture_shows_the_crossing_connections_and_no_others_in_their_colour() -> None:
    net, parts = divided()
    drawing = network.draw(net.topology, parts, "A network <of> two devices")
    crossing = re.findall(rf'<path d="([^"]*)" stroke="{network.look.CROSSING}"', drawing)
    assert sum(path.count("M") for path in crossing) == 2
    assert drawing.count("<circle") == 3 + 8 + 6 + 4
    assert "A network &lt;of&gt; two devices" in drawing
    assert network.look.CROSSING not in network.draw(net.topology, {}, "One device")


# ---- in a browser ----


@pytest.mark.slow
@needs_chromium
def test_the_page_looks_right_at_both_widths_offline_and_by_keyboard(page: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page)
    with browser() as tab:
        for width in WIDTHS:
            tab.open(path, width)
            assert tab.value("document.documentElement.scrollWidth") <= width  # nothing reaches over the edge
            tab.value("document.querySelectorAll('details').forEach(part => { part.open = true; })")
            assert tab.value("new Promise(done => setTimeout(() => done(true), 300))")
            assert tab.value("document.documentElement.scrollWidth") <= width
            for clip in tab.value(_BOXES):
                assert clip["width"] <= width
                assert clip["inside"], f"{clip['label']} has text that reaches out of its figure at {width} px"
                assert _colours(tab.screenshot({k: clip[k] for k in ("x", "y", "width", "height")}, scale=0.25)) > 8, clip["label"]
            smallest = tab.value(
                "Math.min(...[...document.querySelectorAll('p,td,figcaption,li,summary')].map(e => "
                "parseFloat(getComputedStyle(e).fontSize)))"
            )
            assert smallest >= 13
        tab.open(path, WIDTHS[0])
        _by_keyboard(tab)
        tab.open(path, WIDTHS[0], dark=True)
        ink, ticks = "getComputedStyle(document.body).color", "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        assert tab.value(ink) == tab.value(ticks) != "rgb(28, 36, 48)"


_BOXES = """[...document.querySelectorAll('figure > .plot, figure .network > svg')].map(e => {
  const box = e.getBoundingClientRect();
  const inside = [...e.querySelectorAll('text')].every(t => {
    const b = t.getBoundingClientRect();
    return !b.width || (b.left >= box.left - 2 && b.right <= box.right + 2 && b.bottom <= box.bottom + 2);
  });
  return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height, inside, label: e.ariaLabel};
})"""


def _colours(png: bytes) -> int:
    """Different colours of a picture: a blank one has one."""
    found = pixels(png)
    return len(np.unique(found.reshape(-1, found.shape[2]), axis=0))


def _by_keyboard(tab: Any) -> None:
    """The first stop skips to the content; all others follow the order of the page; a closed part is opened by the keyboard."""
    tab.press("Tab")
    assert tab.value("document.activeElement.textContent") == "Skip to the content"
    assert tab.value("document.activeElement.getBoundingClientRect().left") >= 0  # it shows once it is reached
    tab.press("Enter")
    assert tab.value("document.activeElement.id") == "main"
    tab.press("Tab")
    stops = 0
    while tab.value("document.activeElement !== document.body"):
        stops += 1
        tab.value("window.before = document.activeElement")
        if tab.value("before.tagName === 'SUMMARY' && !before.parentElement.open"):
            tab.press("Enter")
            assert tab.value("before.parentElement.open")
        tab.press("Tab")
        assert tab.value(
            "document.activeElement === document.body"
            " || !!(before.compareDocumentPosition(document.activeElement) & Node.DOCUMENT_POSITION_FOLLOWING)"
        )
    assert stops > 8
