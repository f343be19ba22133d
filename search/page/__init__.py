"""A run as one HTML file that needs no network: what was found, how it grew, what crosses, and how good the predictions were.

Every chart has an alternative text, a caption that says what one sees and what it means, and its numbers as a table.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.resources import files
from typing import TYPE_CHECKING

from search.compare import throughput
from search.options import Options, RunRecord
from search.page import charts
from search.page.markup import Rows, details, figure, paragraph, section, table, text
from search.page.trial import TIMES, short, speedup, trial_part
from search.report import devices_in_words, percent, rate, structure_cells
from search.results import RunDocument, TrialDocument, fastest, reason_of
from search.storage import read_trials

if TYPE_CHECKING:
    from search.load import LoadedRun

SHOWN = 4
"""Members of the front that are shown in all detail, the fastest first."""

_ALWAYS = ("trials", "seed", "tolerance", "throughput", "sampler")
"""Options that a run's command shows also where they are as by default."""

_SECTIONS = {
    "front": "The front",
    "trials": "How they grew",
    "steps": "Predicted and measured",
    "parameters": "What mattered",
    "failures": "Failures",
    "run": "The run",
}


def report(run: LoadedRun) -> str:
    """The page of a run, also of one that is at work or has failed."""
    found = run.document
    parts = (_front(found), _trials(run), _steps(found), _parameters(run), _failures(found), _facts(run))
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in _SECTIONS.items())
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="grow"><title>{text(found["run"])}: report</title><link rel="icon" href="data:,">'
        f"<style>{_resource('style.css')}</style></head><body>"
        f'<a class="skip" href="#main">Skip to the content</a>{_header(found)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main id="main" tabindex="-1">{"".join(parts)}</main>'
        f"<footer>{_vocabulary()}</footer>"
        f"<script>{_plotly()}</script><script>{_resource('page.js')}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return files("search.page").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    code: str = get_plotlyjs()
    return code.replace("</script", "<\\/script")


# ---- the headline ----


def _header(found: RunDocument) -> str:
    done = sum(trial["state"] != "running" for trial in found["trials"])
    kicker = f"{found['run']} · {found['study']} · {devices_in_words(found)} · {done} trials · {found['state']}"
    headline, lead = _headline(found)
    tiles = "".join(f"<li><b>{text(value)}</b><span>{text(words)}</span></li>" for value, words in _tiles(found))
    listed = f'<ul class="tiles">{tiles}</ul>' if tiles else ""
    return f"<header>{paragraph(kicker, 'kicker')}<h1>{text(headline)}</h1>{paragraph(lead, 'lead')}{listed}</header>"


def _headline(found: RunDocument) -> tuple[str, str]:
    """What came out, in one sentence and a second one."""
    best, dense = fastest(found), found["trials"][0] if found["trials"] else None
    if found["state"] == "failed":
        return "The run failed", found["reason"] or "No reason was noted."
    if best is None or dense is None:
        return "Nothing to show yet", "Trial 0, the dense start network, has not ended: nothing can be compared with it so far."
    if best["role"] != "search":
        return (
            "No network on the front is faster than the dense start network",
            "Every faster one that was tried loses more accuracy than the run tolerates:"
            " allow it more trials, more steps or a larger tolerance.",
        )
    word, speed = speedup(found, best)
    return (
        f"{speed:.2f} times the training throughput of the dense start network, with {percent(best['density'])} of its connections",
        f"Trial {best['number']} reaches {percent(best['accuracy'])} validation accuracy, {_points(best, dense)} the dense network's"
        f" {percent(dense['accuracy'])}. The throughput is {word}, on {best['devices_used']} of {devices_in_words(found)}"
        f" under the strategy {best['strategy']}.",
    )


def _points(trial: TrialDocument, dense: TrialDocument) -> str:
    difference = 100 * ((trial["accuracy"] or 0.0) - (dense["accuracy"] or 0.0))
    if abs(difference) < 0.005:
        return "the same as"
    return f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'}"


def _tiles(found: RunDocument) -> Iterator[tuple[str, str]]:
    best = fastest(found)
    if best is None:
        return
    word, speed = speedup(found, best)
    if best["role"] == "search":
        yield f"{speed:.2f}{TIMES}", f"throughput against the dense start network, {word} (trial {best['number']})"
        yield percent(best["accuracy"]), f"validation accuracy{_test(best)}"
        yield percent(best["density"]), f"density: {best['connections'] or 0:,} connections"
        hidden = sum(best["units"].values())
        yield f"{best['crossing_units']:,}", f"units cross between devices, of {hidden:,} units in all"
    yield str(len(found["pareto"])), f"trials on the Pareto front, of {len(found['trials'])}"
    if found["hypervolume"] is not None:
        yield rate(found["hypervolume"]), f"hypervolume, samples/s ({found['objective']})"


def _test(trial: TrialDocument) -> str:
    return "" if trial["test_accuracy"] is None else f"; test {percent(trial['test_accuracy'])}"


# ---- the front ----


def _front(found: RunDocument) -> str:
    told = [trial for trial in found["trials"] if trial["accuracy"] is not None]
    if not told:
        return section("front", _SECTIONS["front"], paragraph("No trial has ended with a network yet.", "quiet"))
    members = ", ".join(str(number) for number in found["pareto"]) or "none"
    caption = (
        "Validation accuracy against training throughput: up and to the right is better. No trial within the tolerance beats a member of"
        f" the front ({members}) in both. Rings show what the clock said of the trials that were timed; all other throughputs are"
        f" {found['objective']}."
    )
    alt = f"Scatter plot of {len(told)} trials, accuracy against throughput; on the Pareto front: {members}."
    chart = figure(alt, caption, charts.front(found), _trial_rows(found, told), height=460)
    return section("front", _SECTIONS["front"], chart, *_covered(found))


def _covered(found: RunDocument) -> Iterator[str]:
    """How the hypervolume grew, once there is something to see."""
    areas = found["hypervolumes"]
    if len(areas) < 2:
        return
    caption = "Hypervolume after each trial, in the order in which they ended: where the line is flat, the search found nothing better."
    alt = f"Line of the hypervolume over {len(areas)} trials, from {rate(areas[0]['hypervolume'])} to {rate(areas[-1]['hypervolume'])}."
    rows = Rows(("trial", "hypervolume"), [(str(area["trial"]), rate(area["hypervolume"])) for area in areas], ("trial", "hypervolume"))
    yield figure(alt, caption, charts.covered(areas), rows, height=300)


def _trial_rows(found: RunDocument, trials: Sequence[TrialDocument]) -> Rows:
    words = (found["objective"], *(() if found["objective"] == "measured" else ("measured",)))
    columns = ("trial", "what", "state", "accuracy", "test", *words, "density", "connections", "devices", "strategy",
               "crossing units", "communication volume")  # fmt: skip
    rows = [
        (
            f"{trial['number']}{' *' if trial['number'] in found['pareto'] else ''}",
            charts.name_of(trial) if trial["role"] != "search" else str(trial["recipe"].get("initial", "")),
            trial["state"],
            percent(trial["accuracy"]),
            percent(trial["test_accuracy"]),
            *(rate(throughput(trial, word)) for word in words),
            *structure_cells(trial),
        )
        for trial in trials
    ]
    return Rows(columns, rows, tuple(column for column in columns if column not in ("what", "state", "strategy")))


# ---- the trials ----


def _trials(run: LoadedRun) -> str:
    found = run.document
    chosen = _chosen(found)
    if not chosen:
        return section("trials", _SECTIONS["trials"], paragraph("No searched trial has ended with a network yet.", "quiet"))
    which = "the members of the front" if found["pareto"] and chosen[0]["number"] in found["pareto"] else "the most accurate trials"
    searched = sum(trial["role"] == "search" for trial in found["trials"])
    told = f"Shown: {len(chosen)} of {searched} searched trials, {which}, the fastest first. grow show RUN TRIAL shows any of them."
    shown = [trial_part(run, trial, opened=place == 0) for place, trial in enumerate(chosen)]
    return section("trials", _SECTIONS["trials"], paragraph(told, "quiet"), *shown)


def _chosen(found: RunDocument) -> list[TrialDocument]:
    """Searched members of the front, the fastest first; where there are none, the most accurate searched trials."""
    ended = [trial for trial in found["trials"] if trial["role"] == "search" and trial["accuracy"] is not None]
    members = [trial for trial in ended if trial["number"] in found["pareto"]]
    if members:
        return sorted(members, key=lambda trial: -(speedup(found, trial)[1]))[:SHOWN]
    return sorted(ended, key=lambda trial: -(trial["accuracy"] or 0.0))[:SHOWN]


# ---- the run ----


def _steps(found: RunDocument) -> str:
    timed = [trial for trial in found["trials"] if charts.step_ms(trial) is not None]
    if not timed:
        why = "nothing is timed on a machine that is elsewhere" if found["devices"]["elsewhere"] else "no trial has been timed yet"
        return section("steps", _SECTIONS["steps"], paragraph(f"No predicted step time stands beside a measured one: {why}.", "quiet"))
    pairs = {trial["number"]: charts.step_ms(trial) or (1.0, 1.0) for trial in timed}
    errors = {number: predicted / measured - 1 for number, (predicted, measured) in pairs.items()}
    middle = sorted(abs(error) for error in errors.values())[len(errors) // 2]
    caption = (
        f"Predicted against measured time of one training step: {len(timed)} trials were timed at the end, alone on the devices."
        " On the dotted line the cost model is right, in the band it is off by less than 25 %;"
        f" here by {percent(middle)} in the median. Above the line the step took longer than predicted."
    )
    rows = Rows(
        ("trial", "what", "predicted, ms", "measured, ms", "error"),
        [
            (
                str(t["number"]),
                charts.name_of(t),
                f"{pairs[t['number']][0]:.3f}",
                f"{pairs[t['number']][1]:.3f}",
                f"{100 * errors[t['number']]:+.0f} %",
            )
            for t in timed
        ],
        ("trial", "predicted, ms", "measured, ms", "error"),
    )
    alt = f"Predicted against measured step time of {len(timed)} trials; median error {percent(middle)}."
    return section("steps", _SECTIONS["steps"], figure(alt, caption, charts.step_times(timed), rows, height=440))


def _parameters(run: LoadedRun) -> str:
    trials = read_trials(run.folder.journal)
    found = charts.importances(trials)
    if not found:
        words = "Too few complete trials to tell which parameters mattered: it takes four."
        return section("parameters", _SECTIONS["parameters"], paragraph(words, "quiet"))
    complete = sum(bool(trial.params) and trial.values is not None for trial in trials)
    caution = " Few trials: take this as a hint." if complete < 30 else ""
    caption = (
        "How much each searched parameter sets the better trials apart from the others (PED-ANOVA), for each objective on its own;"
        f" shares add up to 1. From {complete} trials.{caution}"
    )
    rows = Rows(
        ("parameter", "for accuracy", "for throughput"),
        [(name, f"{accuracy:.3f}", f"{speed:.3f}") for name, (accuracy, speed) in found.items()],
        ("for accuracy", "for throughput"),
    )
    alt = f"Bars of the importance of {len(found)} parameters; most important: {next(iter(found))}."
    return section(
        "parameters", _SECTIONS["parameters"], figure(alt, caption, charts.importance_bars(found), rows, height=90 + 34 * len(found))
    )


def _failures(found: RunDocument) -> str:
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    early = [trial for trial in found["trials"] if trial["state"] in ("infeasible", "stopped_early")]
    parts = []
    if found["reason"]:
        parts.append(paragraph(f"The run failed: {found['reason']}"))
    if failed:
        rows = Rows(("trial", "reason", "recipe"), [(str(t["number"]), reason_of(t) or "-", _recipe_words(t)) for t in failed], ("trial",))
        parts.append(table(f"{len(failed)} of {len(found['trials'])} trials failed", rows))
    else:
        parts.append(paragraph(f"None of the {len(found['trials'])} trials failed."))
    if early:
        rows = Rows(
            ("trial", "state", "reason", "accuracy", "density", "recipe"),
            [
                (
                    str(t["number"]),
                    t["state"].replace("_", " "),
                    reason_of(t) or "-",
                    percent(t["accuracy"]),
                    percent(t["density"]),
                    _recipe_words(t),
                )
                for t in early
            ],
            ("trial", "accuracy", "density"),
        )
        which = "1 trial is infeasible or ended early; its recipe counts as a constraint, not as a failure"
        if len(early) > 1:
            which = f"{len(early)} trials are infeasible or ended early; their recipes count as constraints, not as failures"
        parts.append(table(which, rows))
    return section("failures", _SECTIONS["failures"], *parts)


def _recipe_words(trial: TrialDocument) -> str:
    names = ("initial", "density", "growth", "pruning", "learning_rate", "strategy", "devices")
    return ", ".join(f"{name.replace('_', ' ')} {short(trial['recipe'][name])}" for name in names if name in trial["recipe"])


def _facts(run: LoadedRun) -> str:
    record, options, found = RunRecord.read(run.folder), Options.read(run.folder), run.document
    data, reference = found["data"], found["reference"]
    facts: list[tuple[str, str]] = [
        ("command", _command(options)),
        ("begun", record.created_at),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("devices", ", ".join(found["devices"]["names"]) or "-"),
    ]
    if data is not None:
        facts.append(
            ("data", f"{data['name']}: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} test samples")
        )
        facts.append(("data sha256", data["sha256"]))
    if reference is not None:
        facts.append(("reference point", f"{percent(reference['accuracy'])} accuracy, {rate(reference['samples_per_s'])} samples/s"))
    lines = "".join(f"<dt>{text(name)}</dt><dd><code>{text(value)}</code></dd>" for name, value in facts)
    return section("run", _SECTIONS["run"], f"<dl>{lines}</dl>")


def _command(options: Options) -> str:
    """The command that asks for these options: what is not as it is by default, and what a reader looks for."""
    words = ["grow", "run"]
    for field in fields(options):
        value, name = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if field.name == "settings" or (value == field.default and field.name not in _ALWAYS):
            continue
        if isinstance(value, bool):
            words.append(name)  # no flag of a run is on by default
        else:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    for name, setting in options.settings.items():
        words += ["--set", f"{name}={setting}"]
    return shlex.join(words)


def _vocabulary() -> str:
    terms = {
        "density": "existing connections over possible ones, of the whole network, all layers counted; sparsity is 1 minus it",
        "crossing unit": "a unit that a device other than its own needs",
        "communication volume": "the remote devices that need each unit, summed over the units",
        "predicted, measured, simulated": "by the cost model on this machine's profile; by the clock; by that model for another machine",
        "tolerance": "accuracy that may be lost against the dense start network; what loses more is outside",
        "hypervolume": "area between the front and the reference point that was fixed when the run began: larger is better",
    }
    lines = "".join(f"<dt>{text(term)}</dt><dd>{text(meaning)}</dd>" for term, meaning in terms.items())
    return details("What the words mean", f"<dl>{lines}</dl>", opened=True)
