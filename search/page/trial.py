"""One trial on the page: its recipe, its course, its layers, its network before and after, and what it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hardware.cost import Simulation, simulate
from hardware.partition import Partition, communication_volume, crossing_units
from hardware.workload import Workload
from search.compare import throughput
from search.errors import RunNotFoundError
from search.files import JsonObject, read_lines
from search.page import charts, look, network
from search.page.markup import Rows, details, figure, grid, paragraph, picture
from search.report import percent
from search.results import RunDocument, TrialDocument
from search.run_profile import frozen_profile

if TYPE_CHECKING:
    from grow.network import Network
    from grow.topology import Topology
    from search.load import LoadedRun

TIMES = "\N{MULTIPLICATION SIGN}"


def speedup(found: RunDocument, trial: TrialDocument) -> tuple[str, float]:
    """The throughput against trial 0's, by the clock where both were timed."""
    dense = found["trials"][0]
    for word in ("measured", found["objective"]):
        mine, other = throughput(trial, word), throughput(dense, word)
        if mine and other:
            return word, mine / other
    return found["objective"], float("nan")


def trial_part(run: LoadedRun, trial: TrialDocument, *, opened: bool) -> str:
    """Everything about one trial, to be opened and closed."""
    word, speed = speedup(run.document, trial)
    heading = (
        f"Trial {trial['number']}: {percent(trial['accuracy'])} accuracy, {speed:.2f}{TIMES} the dense throughput ({word}),"
        f" density {percent(trial['density'])}, {trial['strategy']} on {trial['devices_used']}"
    )
    shown = _Shown(run, trial)
    parts = [_recipe_line(trial), *(_drawn(part, shown) for part in (_course, _layers, _networks, _matrices, _links))]
    inner = "".join(parts)
    return details(heading, f'<div class="inner">{inner}</div>', opened=opened, kind="trial")


def _drawn(part: Callable[[_Shown], str], shown: _Shown) -> str:
    """A part whose files may be missing or damaged: what is left is shown."""
    try:
        return part(shown)
    except (RunNotFoundError, ValueError, TypeError, LookupError) as error:
        return paragraph(f"No picture: {error}", "quiet")


@dataclass(frozen=True, eq=False)
class _Shown:
    """A trial, and what its pictures are made of."""

    run: LoadedRun
    trial: TrialDocument

    @property
    def number(self) -> int:
        return self.trial["number"]

    @cached_property
    def metrics(self) -> list[JsonObject]:
        return read_lines(self.run.folder.trial(self.number).metrics)

    @cached_property
    def events(self) -> list[JsonObject]:
        return read_lines(self.run.folder.trial(self.number).history)

    @cached_property
    def before(self) -> Network:
        return self.run.start_network(self.number)

    @cached_property
    def after(self) -> Network:
        return self.run.network(self.number)

    @cached_property
    def partition(self) -> Partition | None:
        parts = self.after.parts
        return None if parts is None else Partition(parts, self.trial["devices_used"])

    @cached_property
    def simulation(self) -> Simulation:
        recipe = self.run.recipe(self.number)
        profile = frozen_profile(self.run.folder)
        return simulate(Workload.of_network(self.after), recipe.how, self.partition, profile, recipe.batch_size, recipe.devices)


def _recipe_line(trial: TrialDocument) -> str:
    names = ("initial", "growth", "pruning", "pattern", "schedule", "price", "drop_fraction", "update_interval", "partitioner")
    recipe = trial["recipe"]
    said = [f"{name.replace('_', ' ')} {short(recipe[name])}" for name in names if recipe.get(name) not in (None, 0, 0.0)]
    return paragraph("Recipe: " + ", ".join(said) + ".", "quiet")


def short(value: object) -> str:
    """A value of a recipe in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _course(shown: _Shown) -> str:
    if not shown.metrics:
        return paragraph("No course was recorded.", "quiet")
    events = shown.events
    grown, pruned = (sum(int(str(e["connections"])) for e in events if e["what"] in kind) for kind in (charts.GROWTH, charts.REMOVAL))
    caption = (
        "Accuracy, density and units while it trained. Triangles that point up are growth, down removal, each with its reason on hover;"
        f" {len(events)} edits grew {grown:,} connections and removed {pruned:,}. Accuracy on the way is that of the first validation"
        " batch, the star is that of all validation data."
    )
    alt = f"Accuracy, density and units of trial {shown.number} over {shown.metrics[-1]['step']} steps, with {len(events)} edits."
    rows = Rows(
        ("step", "what", "connections", "units", "loss before", "loss after", "density after", "why"),
        [
            (
                f"{event['step']}",
                str(event["what"]).replace("_", " "),
                f"{event['connections']:,}",
                ", ".join(f"{space} {count}" for space, count in _mapping(event, "units").items()),
                f"{event['loss_before']:.4f}",
                f"{event['loss_after']:.4f}",
                percent(event["density_after"]),
                str(event["why"]),
            )
            for event in events
        ],
        ("step", "connections", "loss before", "loss after", "density after"),
    )
    chart = charts.course(shown.metrics, events, shown.trial["accuracy"])
    return figure(alt, caption, chart, rows if events else None, height=560, title="Course of the training")


def _mapping(record: JsonObject, name: str) -> Mapping[str, object]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _layers(shown: _Shown) -> str:
    chart = charts.layers(shown.metrics, shown.events)
    if chart is None:
        words = "no edit was made" if not shown.events else "the run was made by a version that did not record it"
        return paragraph(f"Threshold and sparsity per layer: {words}.", "quiet")
    last = next(event for event in reversed(shown.events) if event.get("densities"))
    thresholds: dict[str, object] = {}
    for event in shown.events:
        thresholds |= _mapping(event, "thresholds")
    rows = Rows(
        ("layer", "sparsity at the end", "last threshold, |weight|"),
        [(name, percent(1 - float(str(d))), short(thresholds.get(name, "-"))) for name, d in _mapping(last, "densities").items()],
        ("sparsity at the end", "last threshold, |weight|"),
    )
    caption = (
        "Sparsity of every layer, and the threshold of each pruning: the largest absolute weight that it took from the layer."
        " Where thresholds rise, pruning cuts into weights that matter more."
    )
    alt = f"Sparsity and pruning threshold of {len(rows.rows)} layers of trial {shown.number} over the steps."
    return figure(alt, caption, chart, rows, height=460, title="Threshold and sparsity per layer")


def _networks(shown: _Shown) -> str:
    before, after = shown.before, shown.after
    drawn = []
    for what, net in (("before the first step", before), ("after training", after)):
        topology, parts = net.topology, net.parts or {}
        words = f"{topology.connections:,} connections, density {percent(topology.density)}{_crossing(topology, parts, shown)}"
        alt = f"Network of trial {shown.number} {what}: {words}."
        caption = (
            f"{words}. A dot stands for up to {network.units_per_dot(topology, parts)} units, a line for the connections between two dots."
        )
        drawn.append(picture(network.draw(topology, parts, alt), caption, what.capitalize()))
    note = _divided(shown)
    return f"<h4>The network by parts</h4>{_legend(shown)}{paragraph(note, 'quiet')}{grid(drawn)}"


def _crossing(topology: Topology, parts: network.Parts, shown: _Shown) -> str:
    if not parts:
        return ""
    work, partition = Workload.of(topology), Partition(parts, shown.trial["devices_used"])
    hidden = sum(topology.units[space] for space in work.hidden)
    crossing = crossing_units(work, partition)
    return f"; {crossing:,} of {hidden:,} hidden units cross ({percent(crossing / max(1, hidden))})"


def _divided(shown: _Shown) -> str:
    if shown.partition is not None:
        return "The denser the connections between two dots, against the layer's densest, the stronger the line."
    if shown.trial["devices_used"] > 1:
        return "Its units are not divided: every device holds the whole network and trains on its share of the batch."
    return "Its units are not divided: it runs on one device."


def _legend(shown: _Shown) -> str:
    if shown.partition is None:
        return ""
    items = [f'<li><i style="background:{look.device(r)}"></i>device {r}</li>' for r in range(shown.partition.count)]
    items.append(f'<li><i style="background:{look.SHARED}"></i>held by every device</li>')
    items.append(f'<li><i class="across" style="background:{look.CROSSING}"></i>crosses between devices</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _matrices(shown: _Shown) -> str:
    topology, parts = shown.after.topology, shown.after.parts or {}
    drawn = []
    for layer in topology.layers:
        caption = f"{layer.shape[0]:,} {TIMES} {layer.shape[1]:,}, {layer.count:,} connections, density {percent(layer.density)}."
        alt = f"Heat map of the connections of layer {layer.layer}, density {percent(layer.density)}."
        drawn.append(figure(alt, caption, network.matrix(topology, layer, parts), height=300, title=layer.layer))
    words = (
        f"Each cell is a bin of units, at most {network.CELLS} a side, and shows how many of its possible connections exist;"
        " every matrix has a scale of its own."
    )
    if parts:
        words += " Units of one device stand together, lines mark where the next begins: what lies off the diagonal blocks crosses."
    return f"<h4>Connections, layer by layer</h4>{paragraph(words, 'quiet')}{grid(drawn, 'small')}"


def _links(shown: _Shown) -> str:
    if shown.trial["devices_used"] < 2:
        return ""
    simulation = shown.simulation
    traffic = simulation.link_bytes
    if not traffic.any():
        return paragraph("Nothing goes between the devices.", "quiet")
    count = len(traffic)
    sent = np.zeros((count, count), np.int64)
    work = Workload.of(shown.after.topology)
    if shown.partition is not None:
        sent = network.units_sent(work, shown.partition)
    units = "" if shown.partition is None else "{:,} units, "
    cells = [["-" if r == p else units.format(sent[r, p]) + in_bytes(float(traffic[r, p])) for p in range(count)] for r in range(count)]
    what = "Bytes" if shown.partition is None else "Units sent forward, and all bytes"
    volume = "" if shown.partition is None else f"; the communication volume is {communication_volume(work, shown.partition):,}"
    rest = " and include the gradients and sums that all devices take part in" if simulation.step.sum_bytes_per_step else ""
    words = f"{what} of one training step, forward and backward, over every link{volume}. Bytes are {simulation.step.word}{rest}."
    drawn = network.links(cells, traffic / max(1, traffic.max()), "Communication per link")
    return f"<h4>Communication per link</h4>{paragraph(words, 'quiet')}{drawn}"


def in_bytes(size: float) -> str:
    """A size in a unit that suits it.

    >>> in_bytes(812), in_bytes(223232), in_bytes(3.2e9)
    ('812 B', '223 kB', '3.20 GB')
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size / factor >= 10 else f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"
