"""A machine's profile as terminal tables, and as a picture of its device graph.

Word: figures were measured here or elsewhere, or are of a preset; what is planned for a machine that is elsewhere is simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import cos, pi, sin
from typing import TYPE_CHECKING

from hardware.profile import Profile
from search.report import percent, table

if TYPE_CHECKING:
    from pathlib import Path

    import plotly.graph_objects as go
    from rich.console import RenderableType

WIDEST = 6
"""Devices up to which latency and bandwidth stand in one matrix."""


def heading(profile: Profile) -> str:
    """What the profile is of, with its word."""
    if "preset" in profile.machine:
        return f"simulated: {profile.described}, from its data sheet"
    return f"measured here: {profile.described}" if profile.word == "predicted" else f"measured elsewhere: {profile.described}"


def tables(profile: Profile) -> list[RenderableType]:
    """Facts, devices, links, kernels and collectives."""
    found = [facts(profile), devices(profile)]
    if len(profile.devices) > 1:
        found += [*matrices(profile), collectives(profile)]
    return [*found, kernels(profile), *([sources(profile)] if profile.sources else [])]


def facts(profile: Profile) -> RenderableType:
    """What is single."""
    rows = [("made at", profile.made_at or "-"), *profile.machine.items(), ("dtype", profile.dtype), ("key", profile.key)]
    rows.append(("step without layers", duration(profile.step_overhead_s)))
    if len(profile.devices) > 1:
        rows.append(("of a sum, hidden by computation", percent(1 / profile.slowdown(len(profile.devices)))))
    calibration = profile.calibration
    if calibration is not None:
        errors = f"median {percent(calibration.median_error)}, worst {percent(calibration.worst_error)}, tau {calibration.kendall_tau:.2f}"
        rows.append(("error of predictions", f"{errors} on {calibration.cases} held-out cases"))
    elif profile.word == "predicted":
        rows.append(("error of predictions", "not known: `grow calibrate` compares them with the clock"))
    return table(heading(profile), ("what", "value"), rows, text=("what", "value"))


def devices(profile: Profile) -> RenderableType:
    """One row a device."""
    rows = [
        (
            str(place),
            device.name,
            device.kind,
            f"{device.memory_bytes / 2**30:,.1f}",
            "-" if device.numa is None else str(device.numa),
            device.id,
        )
        for place, device in enumerate(profile.devices)
    ]
    return table("devices", ("device", "name", "kind", "GiB", "NUMA node", "id"), rows, text=("name", "kind", "id"))


def matrices(profile: Profile) -> list[RenderableType]:
    """Latency and bandwidth between every two devices: in one matrix, or in two where there are many."""
    places = range(len(profile.devices))

    def matrix(title: str, entry: Callable[[int, int], str]) -> RenderableType:
        rows = [(str(a), *("-" if a == b else entry(a, b) for b in places)) for a in places]
        return table(title, ("from", *map(str, places)), rows)

    link = profile.graph.link
    if len(places) <= WIDEST:
        return [matrix("latency, bandwidth of a link", lambda a, b: link_in_words(profile, a, b))]
    return [
        matrix("latency of a link, us", lambda a, b: f"{link(a, b).latency_s * 1e6:.3g}"),
        matrix("bandwidth of a link, GB/s", lambda a, b: f"{link(a, b).bandwidth_bytes_per_s / 1e9:.3g}"),
    ]


def link_in_words(profile: Profile, first: int, second: int) -> str:
    """A link's latency and bandwidth."""
    link = profile.graph.link(first, second)
    return f"{link.latency_s * 1e6:.3g} us, {link.bandwidth_bytes_per_s / 1e9:.3g} GB/s"


def collectives(profile: Profile) -> RenderableType:
    """Times over bytes and ranks, with their spread where it was measured."""
    rows = []
    ordered = sorted(profile.collectives, key=lambda row: (row.ranks, row.bytes, row.collective))
    for (ranks, size), group in groupby(ordered, key=lambda row: (row.ranks, row.bytes)):
        found = {row.collective: duration(row.seconds) + (f" ±{50 * row.spread:.0f} %" if row.spread else "") for row in group}
        rows.append((str(ranks), f"{size:,}", *(found.get(name, "-") for name in ("exchange", "sum", "gather"))))
    columns = ("ranks", "bytes", "exchange (all-to-all)", "sum (all-reduce)", "gather (all-gather)")
    return table("collectives between computations; ± half the range of the middle half", columns, rows)


def kernels(profile: Profile) -> RenderableType:
    """Rates of the largest layer step and time of the smallest, per kernel and density."""
    rows = []
    ordered = sorted(profile.kernels, key=lambda row: (row.kernel, row.density))
    for (kernel, density), group in groupby(ordered, key=lambda row: (row.kernel, row.density)):
        steps = sorted(group, key=lambda row: row.rows * row.columns * row.batch)
        small, large = steps[0], steps[-1]
        flops = 6 * large.rows * large.columns * large.batch * density  # three products of a multiplication and an addition
        slower = [row.ratio for row in profile.contention if row.kernel == kernel]
        rows.append(
            (
                kernel,
                percent(density),
                f"{small.rows} x {small.columns} x {small.batch}",
                duration(small.seconds),
                f"{large.rows} x {large.columns} x {large.batch}",
                duration(large.seconds),
                f"{flops / large.seconds / 1e9:,.3g}",
                f"{max(slower):.2f}" if slower else "-",
            )
        )
    columns = ("kernel", "density", "smallest", "step", "largest", "step ", "GFLOP/s", "all at once")
    return table("layer steps (rows x columns x batch), and how many times as long they take on all devices at once", columns, rows)


def sources(profile: Profile) -> RenderableType:
    """Where the figures of a preset come from."""
    return table("sources", ("figure", "source"), profile.sources.items(), text=("figure", "source"))


def duration(seconds: float) -> str:
    """A time in a unit that suits it.

    >>> duration(0.0000123), duration(0.0123), duration(12.3)
    ('12.3 us', '12.3 ms', '12.3 s')
    """
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


# ---- the picture ----


def draw(profile: Profile, path: Path) -> None:
    """Write an HTML page with the device graph, the matrix of bandwidths and the kernels' times; it needs no network."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1, cols=3, subplot_titles=("device graph", "bandwidth, GB/s", "collectives on all devices"), column_widths=[0.4, 0.3, 0.3]
    )
    for trace in graph_traces(profile):
        figure.add_trace(trace, 1, 1)
    figure.add_trace(matrix_trace(profile), 1, 2)
    for trace in collective_traces(profile):
        figure.add_trace(trace, 1, 3)
    figure.update_layout(title=heading(profile), width=1500, height=600, plot_bgcolor="white")
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(visible=False, row=1, col=1)
        axis(type="category", row=1, col=2)
    figure.update_yaxes(scaleanchor="x", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    figure.update_xaxes(type="log", title="bytes", row=1, col=3)
    figure.update_yaxes(type="log", title="s", row=1, col=3)
    figure.write_html(path, include_plotlyjs=True)


def graph_traces(profile: Profile) -> list[go.Scatter]:
    """Links by bandwidth (the wider the faster), with their words on hover, below devices on a circle."""
    import plotly.graph_objects as go

    spots = places_on_circle(len(profile.devices))
    links = profile.graph.links
    fastest = max((link.bandwidth_bytes_per_s for link in links.values()), default=1.0)
    media = list(dict.fromkeys(link.medium for link in links.values()))
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
    traces: list[go.Scatter] = []
    for (first, second), link in links.items():
        (x0, y0), (x1, y1) = spots[first], spots[second]
        traces.append(
            go.Scatter(
                x=[x0, (x0 + x1) / 2, x1],
                y=[y0, (y0 + y1) / 2, y1],
                mode="lines",
                line={
                    "width": 1 + 5 * (link.bandwidth_bytes_per_s / fastest) ** 0.5,
                    "color": colours[media.index(link.medium) % len(colours)],
                },
                text=f"{first} - {second}: {link.medium} {link_in_words(profile, first, second)}",
                hoverinfo="text",
                name=link.medium or "link",
                legendgroup=link.medium,
                showlegend=not any(trace.legendgroup == link.medium for trace in traces),
            )
        )
    labels = [f"{place}<br>{device.name}" if len(spots) <= 4 else str(place) for place, device in enumerate(profile.devices)]
    words = [f"{device.name}, {device.memory_bytes / 2**30:.0f} GiB, {device.id}" for device in profile.devices]
    x, y = zip(*spots, strict=True)
    look = {"size": 34, "color": "#444"}
    traces.append(
        go.Scatter(
            x=x,
            y=y,
            mode="markers+text",
            text=labels,
            hovertext=words,
            hoverinfo="text",
            marker=look,
            textposition="top center",
            name="devices",
        )
    )
    return traces


def places_on_circle(count: int) -> list[tuple[float, float]]:
    """Points at equal distances, the first one on top."""
    return [(sin(2 * pi * place / count), cos(2 * pi * place / count)) for place in range(count)]


def matrix_trace(profile: Profile) -> go.Heatmap:
    """Bandwidth between every two devices."""
    import plotly.graph_objects as go

    places = range(len(profile.devices))
    rates = [[None if a == b else profile.graph.link(a, b).bandwidth_bytes_per_s / 1e9 for b in places] for a in places]
    words = [["" if a == b else link_in_words(profile, a, b) for b in places] for a in places]
    names = [str(place) for place in places]
    few = len(names) <= 8
    return go.Heatmap(
        z=rates,
        x=names,
        y=names,
        text=words,
        hoverinfo="text",
        colorscale="Blues",
        zmin=0,
        showscale=False,
        texttemplate="%{z:.3g}" if few else None,
    )


def collective_traces(profile: Profile) -> list[go.Scatter]:
    """Times of the collectives of all devices over their bytes."""
    import plotly.graph_objects as go

    ranks = len(profile.devices)
    traces = []
    for name in ("exchange", "sum", "gather"):
        rows = sorted((row.bytes, row.seconds) for row in profile.collectives if (row.collective, row.ranks) == (name, ranks))
        x, y = _columns(rows)
        traces.append(go.Scatter(x=x, y=y, mode="lines+markers", name=name))
    return traces


def _columns(rows: Iterable[tuple[float, float]]) -> tuple[Sequence[float], Sequence[float]]:
    pairs = list(rows)
    return [first for first, _ in pairs], [second for _, second in pairs]
