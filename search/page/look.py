"""Colours and forms that mean the same in every figure of a report."""

from __future__ import annotations

from typing import Any

DEVICES = ("#3b6fb0", "#1f9e89", "#8a63b8", "#b08a1e", "#c05a9b", "#56a3d9", "#7d6a55", "#6b7a8f")
"""Of a device's units and what stays on it; they come round again after eight."""

CROSSING = "#e4572e"
"""Of what goes from one device to another."""

SHARED = "#8b95a1"
"""Of what every device has: inputs, outputs, and networks that are not divided."""

FRONT, SEARCHED, OUTSIDE, BASELINE = "#2f6fd0", "#7fa8dc", "#a5adb8", "#b5651d"
GROWN, PRUNED = "#1b9e5a", "#c0392b"
SERIES = ("#3b6fb0", "#d97706", "#1f9e89", "#8a63b8", "#c05a9b", "#7d6a55", "#56a3d9", "#9aa11f")
"""Of layers and spaces, in the order of the network."""

SCALE = [[0.0, "rgba(59,111,176,0.04)"], [0.25, "rgba(59,111,176,0.35)"], [1.0, "rgba(24,58,110,1)"]]
GRID = "rgba(128,140,155,0.25)"


def device(number: int) -> str:
    """Colour of a device; of what has no device, for a negative number."""
    return SHARED if number < 0 else DEVICES[number % len(DEVICES)]


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis with a quiet grid."""
    return {"title": {"text": title, "standoff": 8}, "gridcolor": GRID, "zeroline": False, "automargin": True, **more}


def layout(**more: Any) -> dict[str, Any]:
    """What all charts share; the page sets the colour of the font, light or dark."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"align": "left"},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        **more,
    }
