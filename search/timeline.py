"""The picture of a simulated step: a row for every device and every way between them, a bar for every task."""

from __future__ import annotations

from pathlib import Path

from hardware.simulate import Span, Timeline

COLOURS = {"forward": "#4878a8", "backward": "#e49444", "communication": "#d1605e", "overhead": "#9a9a9a"}
ROW_PIXELS, EDGE_PIXELS = 26, 170


def draw(timeline: Timeline, title: str, path: Path) -> None:
    """Write the picture as one HTML file that needs no network. Bars tell their task, time and bytes."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    names: dict[str, None] = {}
    for kind, colour in COLOURS.items():
        bars = [(row, span) for span in timeline.spans if span.task.kind == kind for row in rows_of(span)]
        names |= dict.fromkeys(row for row, _ in bars)
        figure.add_bar(
            orientation="h",
            name=kind,
            y=[row for row, _ in bars],
            base=[1000 * span.begin_s for _, span in bars],
            x=[1000 * (span.end_s - span.begin_s) for _, span in bars],
            marker={"color": colour, "line": {"color": "white", "width": 0.5}},
            text=[span.task.name for _, span in bars],
            textposition="inside",
            insidetextanchor="start",
            constraintext="none",
            hovertext=[_hover(span) for _, span in bars],
            hoverinfo="text",
        )
    order = sorted(names, key=lambda row: (not row.startswith("device"), row))
    figure.update_layout(
        title=title,
        barmode="overlay",
        xaxis_title="ms",
        yaxis={"categoryorder": "array", "categoryarray": order[::-1]},
        height=EDGE_PIXELS + ROW_PIXELS * len(order),
        template="plotly_white",
        uniformtext={"minsize": 9, "mode": "hide"},
    )
    figure.write_html(path, include_plotlyjs=True, full_html=True)


def rows_of(span: Span) -> list[str]:
    """Where a task is drawn: on its devices, else on the links that it takes, else on the ways out of the devices."""
    for beginning in ("device ", "link ", "out "):
        found = [name for name in span.task.resources if name.startswith(beginning)]
        if found:
            return [f"device {name.removeprefix('out ')} sends" if beginning == "out " else name for name in found]
    return []


def _hover(span: Span) -> str:
    size = f", {span.task.size_bytes:,} bytes" if span.task.size_bytes else ""
    return f"{span.task.name}, {span.task.kind}: {1000 * (span.end_s - span.begin_s):.4g} ms from {1000 * span.begin_s:.4g} ms{size}"
