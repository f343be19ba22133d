"""The end of a run: baselines and front are timed alone on the devices, and the test accuracy of the front is read, once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from search.baselines import DATA_PARALLEL, DENSE
from search.lost_files import has_network
from search.options import Options, Plan
from search.process import POLL_S, wait
from search.progress import Progress
from search.quiet import Hold, devices_of
from search.records import checked_if_valid
from search.run.parent import Parent
from search.run.state import note, set_state
from search.slots import slots
from search.storage import pareto, read_trials


def close(parent: Parent, options: Options, plan: Plan, view: Progress) -> None:
    """Measure what is to be measured, and let the run be complete."""
    members = pareto(read_trials(parent.folder.journal))
    timed = [] if plan.elsewhere is not None else sorted({DENSE, DATA_PARALLEL, *members})
    _measure(parent, timed, members, devices_of(slots(plan.kind, options.gpus)), view)
    set_state(parent.folder, "complete")


def _measure(parent: Parent, timed: Sequence[int], tested: Sequence[int], devices: Sequence[str], view: Progress) -> None:
    """Time final networks alone on the devices, and read the test accuracy of some, as far as that is not done yet."""
    folder = parent.folder
    untimed = {n for n in timed if checked_if_valid(folder.trial(n).measured) is None}
    untested = {n for n in tested if checked_if_valid(folder.trial(n).test) is None}
    there = {n for n in untimed | untested if has_network(folder.trial(n))}
    _name_lost(parent, (untimed | untested) - there, view)
    time_them, test_them = sorted(untimed & there), sorted(untested & there)
    if not time_them and not test_them:
        return
    numbers = ", ".join(map(str, sorted({*time_them, *test_them})))
    view.say(f"measuring trials {numbers} on the devices" if time_them else f"reading the test accuracy of trials {numbers}")
    arguments = [str(folder.path), "--time", *map(str, time_them), "--test", *map(str, test_them)]
    with _alone_on(devices if time_them else [], parent, view), view.aside():
        code = wait(parent.nursery.start("search.measure", arguments), parent.signals)
    parent.check_ended(code, "measuring")
    note(folder, "measured", timed=time_them, tested=test_them)


def _name_lost(parent: Parent, numbers: set[int], view: Progress) -> None:
    """Say which trials are left out, as what their networks are made of is lost."""
    for number in sorted(numbers):
        files = parent.folder.trial(number)
        what = files.recipe if checked_if_valid(files.recipe) is None else files.checkpoint
        loss = f"trial {number} has lost its network: {what} is missing or damaged; it is not measured"
        view.say(loss)
        note(parent.folder, "files_lost", what=loss)


@contextmanager
def _alone_on(devices: Sequence[str], parent: Parent, view: Progress) -> Iterator[None]:
    """Wait until nothing trains on some devices, and keep it so."""
    hold = Hold(devices, alone=True)
    try:
        if not hold.ready():
            view.say(f"waiting until nothing else trains on {', '.join(devices)}")
        while not hold.ready():
            parent.signals.check()
            time.sleep(POLL_S)
        yield
    finally:
        hold.release()
