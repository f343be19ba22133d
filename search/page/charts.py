"""The charts of a report, as plain plotly data: the front, the course of a trial, its layers, step times, importances."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

from search.compare import throughput
from search.files import JsonObject
from search.page import look
from search.page.markup import Chart
from search.results import CoveredDocument, RunDocument, TrialDocument

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

GROWTH = ("grow_connections", "add_units", "insert_layer")
REMOVAL = ("prune_connections", "remove_units", "merge_units")


def name_of(trial: TrialDocument) -> str:
    """What a trial is called in a chart."""
    roles = {"baseline_dense": "dense start network", "baseline_data_parallel": "dense, data parallel"}
    return roles.get(trial["role"], f"trial {trial['number']}")


# ---- the front ----


def front(found: RunDocument) -> Chart:
    """Accuracy against throughput of all trials; the front, the baselines, and what the clock said."""
    word, members = found["objective"], set(found["pareto"])
    placed = [trial for trial in found["trials"] if trial["accuracy"] is not None and throughput(trial, word) is not None]
    searched = [trial for trial in placed if trial["role"] == "search"]
    outside = [trial for trial in searched if trial["state"] != "complete"]
    inside = [trial for trial in searched if trial["state"] == "complete" and trial["number"] not in members]
    on_front = sorted((trial for trial in placed if trial["number"] in members), key=lambda trial: throughput(trial, word) or 0)
    baselines = [trial for trial in placed if trial["role"] != "search"]
    timed = [trial for trial in placed if word != "measured" and trial["throughput"]["measured_samples_per_s"] is not None]
    traces = [
        _points(outside, word, "outside the tolerance", {"color": look.OUTSIDE, "symbol": "x-thin", "size": 8, "line": {"width": 2}}),
        _points(inside, word, "within the tolerance", {"color": look.SEARCHED, "size": 9}),
        {
            **_points(on_front, word, f"Pareto front, {word}", {"color": look.FRONT, "size": 12}),
            "mode": "lines+markers+text",
            "text": [str(trial["number"]) for trial in on_front],
            "textposition": "top right",
            "line": {"shape": "vh", "color": look.FRONT, "width": 1.5},
        },
        {
            **_points(baselines, word, "baselines", {"color": look.BASELINE, "symbol": "diamond", "size": 12}),
            "mode": "markers+text",
            "text": ["dense" if trial["role"] == "baseline_dense" else "data parallel" for trial in baselines],
            "textposition": "top left",  # away from the front, which goes down to the right
        },
        _ways(timed, word),
        _points(timed, "measured", "measured by the clock", {"symbol": "circle-open", "size": 15, "color": look.CROSSING}),
    ]
    rates = [rate for trace in traces for rate in trace["x"] if rate is not None]
    wide = bool(rates) and max(rates) > 12 * min(rates)
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": look.layout(
            xaxis=look.axis("training throughput, samples/s", **(log_axis(min(rates), max(rates)) if wide else {"rangemode": "tozero"})),
            yaxis=look.axis("validation accuracy, %"),
            shapes=_tolerance(found),
            annotations=_tolerance_name(found),
        ),
    }


def covered(areas: Sequence[CoveredDocument]) -> Chart:
    """The hypervolume over the trials told."""
    line = _line(range(1, len(areas) + 1), [area["hypervolume"] for area in areas], "hypervolume", look.FRONT, "y", "%{y:,.0f}")
    line["line"]["shape"] = "hv"
    line["hovertemplate"] = "after %{x} trials: %{y:,.0f}<extra></extra>"
    return {
        "data": [line],
        "layout": look.layout(xaxis=look.axis("trials told"), yaxis=look.axis("hypervolume, samples/s", rangemode="tozero")),
    }


def _points(trials: Sequence[TrialDocument], word: Any, name: str, marker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [throughput(trial, word) for trial in trials],
        "y": [100 * (trial["accuracy"] or 0.0) for trial in trials],
        "marker": dict(marker),
        "customdata": [_facts(trial) for trial in trials],
        "hovertemplate": f"<b>%{{customdata}}</b><br>%{{y:.2f}} % accuracy<br>%{{x:,.0f}} samples/s ({word})<extra></extra>",
    }


def _ways(timed: Sequence[TrialDocument], word: Any) -> dict[str, Any]:
    """Thin lines from what was planned to what the clock said."""
    x = [end for trial in timed for end in (throughput(trial, word), trial["throughput"]["measured_samples_per_s"], None)]
    y = [end for trial in timed for end in (100 * (trial["accuracy"] or 0.0), 100 * (trial["accuracy"] or 0.0), None)]
    line = {"color": look.CROSSING, "width": 1, "dash": "dot"}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "opacity": 0.6, "hoverinfo": "skip", "showlegend": False}


def _facts(trial: TrialDocument) -> str:
    density = "" if trial["density"] is None else f", density {100 * trial['density']:.2f} %"
    return (
        f"{name_of(trial)}: {trial['strategy']} on {trial['devices_used']} {'device' if trial['devices_used'] == 1 else 'devices'}{density}"
    )


def _tolerance(found: RunDocument) -> list[dict[str, Any]]:
    if not _shows_tolerance(found):
        return []
    height = _lowest(found)
    line = {"color": look.SHARED, "dash": "dot", "width": 1.5}
    return [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": line}]


def _tolerance_name(found: RunDocument) -> list[dict[str, Any]]:
    if not _shows_tolerance(found):
        return []
    where = {"xref": "paper", "x": 1, "xanchor": "right", "y": _lowest(found), "yanchor": "bottom", "showarrow": False}
    return [{**where, "text": "lowest accuracy within the tolerance", "font": {"size": 11, "color": look.SHARED}}]


def _lowest(found: RunDocument) -> float:
    return 0.0 if found["reference"] is None else 100 * found["reference"]["accuracy"]


def _shows_tolerance(found: RunDocument) -> bool:
    """Not where it is so low that it would squeeze all trials into a corner."""
    accuracies = [100 * trial["accuracy"] for trial in found["trials"] if trial["accuracy"] is not None]
    return bool(accuracies) and found["reference"] is not None and _lowest(found) > min(accuracies) - 2


# ---- one trial ----


def course(metrics: Sequence[JsonObject], events: Sequence[JsonObject], accuracy: float | None) -> Chart:
    """Accuracy, density and units over the steps of a training, with every growth and removal marked."""
    steps, last = _column(metrics, "step"), max([*_column(metrics, "step"), *_column(events, "step"), 1])
    judged = [line for line in metrics if line.get("accuracy") is not None]
    traces = [
        _line(
            _column(judged, "step"),
            _percent(_column(judged, "accuracy")),
            "accuracy so far",
            look.FRONT,
            "y",
            "%{y:.1f} %",
            mode="lines+markers",
        ),
        *([] if accuracy is None else [_final(last, 100 * accuracy)]),
        *_density(metrics, events),
        *_units(steps, metrics, events),
    ]
    return {
        "data": traces,
        "layout": look.layout(
            xaxis=look.axis("training step", anchor="y3", range=[0, last * 1.02]),
            yaxis=look.axis("accuracy, %", domain=[0.72, 1.0]),
            yaxis2=look.axis("density, %", domain=[0.36, 0.66], rangemode="tozero"),
            yaxis3=look.axis("units", domain=[0.0, 0.3], rangemode="tozero"),
        ),
    }


def _density(metrics: Sequence[JsonObject], events: Sequence[JsonObject]) -> list[dict[str, Any]]:
    known = [(line["step"], line["density"]) for line in metrics] + [(event["step"], event["density_after"]) for event in events]
    known.sort(key=lambda pair: pair[0])  # type: ignore[arg-type, return-value]  # a step is a number; the order within one step stays
    line = _line([step for step, _ in known], _percent([d for _, d in known]), "density", look.SHARED, "y2", "%{y:.2f} %")
    line["line"]["shape"] = "hv"
    kinds = (
        ("connections grown", ("grow_connections",), look.GROWN, "triangle-up"),
        ("connections pruned", ("prune_connections",), look.PRUNED, "triangle-down"),
    )
    return [line, *(_marks(events, label, whats, colour, symbol) for label, whats, colour, symbol in kinds)]


def _marks(events: Sequence[JsonObject], label: str, whats: Sequence[str], colour: str, symbol: str) -> dict[str, Any]:
    chosen = [event for event in events if event["what"] in whats]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "yaxis": "y2",
        "x": _column(chosen, "step"),
        "y": _percent(_column(chosen, "density_after")),
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "customdata": [[event["connections"], event["why"], event["loss_before"], event["loss_after"]] for event in chosen],
        "hovertemplate": "step %{x}: %{customdata[0]:,} " + label + "<br>density after %{y:.2f} %<br>loss %{customdata[2]:.4f} to "
        "%{customdata[3]:.4f}<br>%{customdata[1]}<extra></extra>",
    }


def _units(steps: Sequence[float], metrics: Sequence[JsonObject], events: Sequence[JsonObject]) -> Iterable[dict[str, Any]]:
    spaces = list(dict.fromkeys(space for line in metrics for space in _inner(line, "units")))
    for number, space in enumerate(spaces):
        counts = [_inner(line, "units").get(space) for line in metrics]
        yield {
            **_line(steps, counts, f"units of {space}", look.SERIES[number % len(look.SERIES)], "y3", "%{y:,} units"),
            "line": {"shape": "hv", "width": 2, "color": look.SERIES[number % len(look.SERIES)]},
        }
    for label, whats, colour, symbol in (
        ("units added", ("add_units", "insert_layer"), look.GROWN, "triangle-up-open"),
        ("units removed", ("remove_units", "merge_units"), look.PRUNED, "triangle-down-open"),
    ):
        chosen = [(event, space, n) for event in events if event["what"] in whats for space, n in _inner(event, "units").items()]
        if not chosen:
            continue
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "yaxis": "y3",
            "x": [event["step"] for event, _, _ in chosen],
            "y": [_at(event["step"], steps, metrics, space) for event, space, _ in chosen],
            "marker": {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5}},
            "customdata": [[n, space, event["why"]] for event, space, n in chosen],
            "hovertemplate": f"step %{{x}}: %{{customdata[0]}} {label} in %{{customdata[1]}}<br>%{{customdata[2]}}<extra></extra>",
        }


def _at(step: object, steps: Sequence[float], metrics: Sequence[JsonObject], space: str) -> float | None:
    """Units of a space at the first line after that step, where a mark is put."""
    after = [_inner(line, "units").get(space) for known, line in zip(steps, metrics, strict=True) if known >= float(str(step))]
    return after[0] if after else None


def _final(step: float, accuracy: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "accuracy on all validation data",
        "x": [step],
        "y": [accuracy],
        "marker": {"symbol": "star", "size": 13, "color": look.BASELINE},
        "hovertemplate": "%{y:.2f} % on all validation data<extra></extra>",
    }


def layers(metrics: Sequence[JsonObject], events: Sequence[JsonObject]) -> Chart | None:
    """Sparsity of every layer over the steps, and the largest |weight| that each pruning took from it. None where it was not recorded."""
    told = [event for event in events if _inner(event, "densities")]
    if not told:
        return None
    names = list(dict.fromkeys(name for event in told for name in _inner(event, "densities")))
    last = max([*_column(metrics, "step"), *_column(told, "step")])
    traces, thresholds = [], []
    for number, name in enumerate(names):
        colour = look.SERIES[number % len(look.SERIES)]
        settled = _last_of_each_step([event for event in told if name in _inner(event, "densities")])
        sparsity = [100 * (1 - float(_inner(event, "densities")[name])) for event in settled]
        steps, kept = [*_column(settled, "step"), last], [*sparsity, sparsity[-1]]  # as the last edit left it, to the end
        line = _line(steps, kept, name, colour, "y", "%{y:.2f} % sparse", mode="lines+markers")
        shape = {"line": {"shape": "hv", "width": 2, "color": colour}, "marker": {"color": colour, "size": 5}}
        traces.append({**line, "legendgroup": name, **shape})
        pruned = [event for event in told if _inner(event, "thresholds").get(name)]
        values = [float(_inner(event, "thresholds")[name]) for event in pruned]
        thresholds += values
        threshold = _line(_column(pruned, "step"), values, name, colour, "y2", "pruned up to |w| = %{y:.3g}", mode="lines+markers")
        traces.append({**threshold, "legendgroup": name, "showlegend": False, "marker": {"color": colour, "size": 5}})
    return {
        "data": traces,
        "layout": look.layout(
            xaxis=look.axis("training step", anchor="y2", range=[0, last * 1.02]),
            yaxis=look.axis("sparsity, %", domain=[0.55, 1.0]),
            yaxis2=look.axis(
                "threshold, |weight|", domain=[0.0, 0.45], **(log_axis(min(thresholds), max(thresholds)) if thresholds else {})
            ),
        ),
    }


def _last_of_each_step(events: Sequence[JsonObject]) -> list[JsonObject]:
    """A pruning and the growth that makes up for it belong together."""
    return list({str(event["step"]): event for event in events}.values())


# ---- the run ----


def step_times(trials: Sequence[TrialDocument]) -> Chart:
    """Milliseconds of a training step, as predicted against as measured."""
    pairs = [(trial, *pair) for trial in trials if (pair := step_ms(trial)) is not None]
    ends = [min(min(p, m) for _, p, m in pairs) / 1.5, max(max(p, m) for _, p, m in pairs) * 1.5]
    ranged = {**log_axis(*ends), "range": [log10(ends[0]), log10(ends[1])]}
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "x": [ends[0], ends[1], ends[1], ends[0]],
                "y": [1.25 * ends[0], 1.25 * ends[1], 0.75 * ends[1], 0.75 * ends[0]],
                "fill": "toself",
                "fillcolor": "rgba(128,140,155,0.15)",
                "line": {"width": 0},
                "name": "within 25 %",
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "lines",
                "x": ends,
                "y": ends,
                "name": "as predicted",
                "line": {"dash": "dot", "color": look.SHARED},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": "trials",
                "x": [p for _, p, _ in pairs],
                "y": [m for _, _, m in pairs],
                "text": [f"trial {trial['number']}" for trial, _, _ in pairs],
                "textposition": "top center",
                "marker": {"size": 11, "color": [look.BASELINE if trial["role"] != "search" else look.FRONT for trial, _, _ in pairs]},
                "customdata": [_facts(trial) for trial, _, _ in pairs],
                "hovertemplate": "<b>%{customdata}</b><br>predicted %{x:.2f} ms<br>measured %{y:.2f} ms<extra></extra>",
            },
        ],
        "layout": look.layout(
            xaxis=look.axis("predicted step time, ms", **ranged),
            yaxis=look.axis("measured step time, ms", **ranged),
        ),
    }


def step_ms(trial: TrialDocument) -> tuple[float, float] | None:
    """Predicted and measured milliseconds of a step; None where one of the two is not known."""
    rates, batch = trial["throughput"], trial["recipe"].get("batch_size")
    predicted, measured = rates["predicted_samples_per_s"], rates["measured_samples_per_s"]
    if not predicted or not measured or not isinstance(batch, int):
        return None
    return 1000 * batch / predicted, 1000 * batch / measured


def importances(trials: Sequence[FrozenTrial]) -> dict[str, tuple[float, float]]:
    """Share of each parameter in what sets the better trials apart: in accuracy and in throughput. Empty where too few trials are complete.

    Watanabe, Bansal, Hutter 2023, PED-ANOVA, arXiv 2304.10255.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = [trial for trial in trials if trial.params and trial.state == TrialState.COMPLETE]
    if len(complete) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that only some trials have
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), directions=("maximize", "maximize"))
        study.add_trials(complete)
        both = []
        for objective in (0, 1):
            try:
                evaluator = PedAnovaImportanceEvaluator()
                both.append(get_param_importances(study, evaluator=evaluator, target=lambda trial, at=objective: trial.values[at]))  # type: ignore[misc]
            except (ValueError, RuntimeError):  # all trials are alike
                return {}
    names = sorted(both[0].keys() | both[1].keys(), key=lambda name: -max(both[0].get(name, 0.0), both[1].get(name, 0.0)))
    return {name: (float(both[0].get(name, 0.0)), float(both[1].get(name, 0.0))) for name in names}


def importance_bars(found: Mapping[str, tuple[float, float]]) -> Chart:
    """Bars, the most important parameter on top."""
    names = list(found)[::-1]
    bars = (("for accuracy", 0, look.FRONT), ("for throughput", 1, look.SERIES[1]))
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": label,
                "y": names,
                "x": [found[name][at] for name in names],
                "marker": {"color": colour},
                "hovertemplate": "%{y}: %{x:.2f} " + label + "<extra></extra>",
            }
            for label, at, colour in bars
        ],
        "layout": look.layout(
            xaxis=look.axis("importance, shares of 1"), yaxis=look.axis(gridcolor="rgba(0,0,0,0)"), barmode="group", bargap=0.25
        ),
    }


# ---- small things ----


def log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with numbers at 1, 2 and 5, or where that were many, at powers of ten.

    >>> log_axis(30, 240)["ticktext"]
    ['20', '50', '100', '200', '500']
    >>> log_axis(0.0003, 3)["ticktext"]
    ['0.0001', '0.001', '0.01', '0.1', '1', '10']
    """
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    steps = [digit * 10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 2) for digit in digits]
    first, last = max(step for step in steps if step <= low), min(step for step in steps if step >= high)
    shown = [step for step in steps if first <= step <= last]
    return {"type": "log", "tickvals": shown, "ticktext": [f"{step:,.10g}" for step in shown]}


def _line(x: Sequence[Any], y: Sequence[Any], name: str, colour: str, axis: str, hover: str, *, mode: str = "lines") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": list(x),
        "y": list(y),
        "yaxis": axis,
        "line": {"color": colour, "width": 2},
        "hovertemplate": f"step %{{x}}: {hover}<extra>{name}</extra>",
    }


def _column(lines: Sequence[JsonObject], name: str) -> list[Any]:
    return [line[name] for line in lines]


def _percent(values: Sequence[Any]) -> list[float]:
    return [100 * float(value) for value in values]


def _inner(line: JsonObject, name: str) -> Mapping[str, Any]:
    value = line.get(name)
    return value if isinstance(value, Mapping) else {}
