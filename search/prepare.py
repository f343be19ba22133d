"""What must be known before the first trial, found in a process of its own since it needs torch: `python -m search.prepare RUN`.

Finds the data, traces the start network, profiles the devices. Writes `hardware.json`, and the plan into `run.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from grow.network import Network
from grow.topology import Topology
from hardware.cache import obtain
from hardware.cost import predict
from hardware.devices import Device, discover
from hardware.presets import hardware
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from search.baselines import baseline
from search.definition import DataSource, StudyDefinition, StudyReference
from search.errors import ConfigurationError, exit_code_of
from search.options import Options, Plan, RunRecord
from search.process import die_with_parent
from search.recipe import HASTENERS, PRICED, UNPRICED, WHOLE_ALONE, default, recipe
from search.run_profile import frozen_profile
from search.rundir import RunFolder
from search.space import Range, idle, to_json
from search.terminal import say


def prepare(run: RunFolder) -> Plan:
    """Check all that a trial could stumble over, cheap things first, and freeze the profile."""
    options, record = Options.read(run), RunRecord.read(run)
    definition = StudyReference(options.study, record.study_sha256).load().fixing(options.settings)
    network = definition.network_name(options.network)
    _check_devices(options)
    _check_alone(options, definition)
    machine = _machine(options)
    found = discover(options.device, options.gpus if machine is None else 1)
    ranges = definition.ranges(options.devices_per_trial)
    source = definition.data(None if options.data_dir is None else Path(options.data_dir))
    start = _start_network(definition, source, options, network)
    _check_units(start.topology, options.devices_per_trial, definition)
    if price_is_idle(dict(definition.settings), ranges, options.devices_per_trial):
        say(f"price {UNPRICED}")
    if found.note is not None and machine is None:  # elsewhere, what trains here is of no account
        say(found.note)
    profile = _profile(run, found.devices, machine)
    profile.save(run.hardware)
    return Plan(
        network=network,
        settings=dict(definition.settings),
        ranges=to_json(ranges),
        first_guesses=definition.guesses(options.devices_per_trial),
        data={**asdict(source), "folder": None if source.folder is None else str(source.folder)},
        kind=found.kind,
        device_names=[device.name for device in profile.devices[: options.gpus]],
        elsewhere=None if machine is None else machine.described,
        dense_step_s=None if machine is not None else _dense_step_s(start, definition, profile),
    )


def _dense_step_s(start: Network, definition: StudyDefinition, profile: Profile) -> float:
    batch = definition.settings.get("batch_size", default("batch_size"))
    assert isinstance(batch, int)
    return predict(Workload.of_network(start), "single", None, profile, batch).total_s


def _machine(options: Options) -> Profile | None:
    """The machine that is planned for, where it is another one than this."""
    if options.hardware is None:
        return None
    found = hardware(options.hardware)
    found.check_devices(options.devices_per_trial)
    if found.word == "predicted":
        return None
    say(f"planning for {found.described}, which is not this machine: throughput is simulated, and nothing is measured")
    return found


def _profile(run: RunFolder, devices: tuple[Device, ...], machine: Profile | None) -> Profile:
    """What the run has frozen already, if it is prepared anew."""
    if run.hardware.is_file():
        return frozen_profile(run)
    return obtain(devices, progress=say) if machine is None else machine


def _check_devices(options: Options) -> None:
    used, each = options.settings.get("devices", 1), options.devices_per_trial
    if isinstance(used, int) and used > each:
        option = "--gpus" if options.gpus_per_trial is None else "--gpus-per-trial"
        raise ConfigurationError(f"devices is {used}, but must be at most the number asked for, {each}; ask for more with {option}")


def _check_alone(options: Options, definition: StudyDefinition) -> None:
    """Refuse what is for one device alone where trials may have several."""
    ranges, each = definition.ranges(options.devices_per_trial), options.devices_per_trial
    fixed = definition.settings.get("devices")
    most = fixed if isinstance(fixed, int) else each
    for name in HASTENERS:
        asked = definition.settings.get(name, False) or (name in ranges and True in ranges[name].ends)
        if asked and most > 1:
            raise ConfigurationError(f"{name} is True, but must be False where trials have up to {most} devices, {WHOLE_ALONE}")


def price_is_idle(settings: dict[str, object], ranges: Mapping[str, Range], devices: int) -> bool:
    """Whether a price was set, or is searched for networks in parts, and no trial can have one."""

    def values(name: str) -> Iterable[object]:
        return ranges[name].ends if name in ranges and name not in settings else [settings.get(name, default(name))]

    def idle_with(patterns: Iterable[object]) -> bool:
        most = settings | {"devices": settings.get("devices", devices)}
        trials = (most | {"strategy": strategy, "pattern": pattern} for strategy, pattern in product(values("strategy"), patterns))
        return all("price" in idle(trial) for trial in trials)

    if settings.get("price"):
        return idle_with(values("pattern"))
    return "price" in ranges and idle_with(values("pattern")) and not idle_with([PRICED])


def _start_network(definition: StudyDefinition, source: DataSource, options: Options, network: str) -> Network:
    fields: dict[str, object] = {
        "study": options.study,
        "network": network,
        "data_sha256": source.sha256,
        "number": 0,
        "role": "baseline_dense",
    }
    first = recipe(dict(definition.settings) | baseline("baseline_dense", 1) | fields)
    material = build.Material(first, definition, definition.task(source, first.batch_size, first.seed))
    return build.start_network(material)


def _check_units(topology: Topology, gpus: int, definition: StudyDefinition) -> None:
    narrowest = min(topology.hidden, key=lambda space: space.units, default=None)
    if narrowest is not None and gpus > narrowest.units:
        raise ConfigurationError(
            f"gpus is {gpus}, but must be at most {narrowest.units}, the units of {narrowest.name!r} in {definition.name}; ask for fewer"
        )


def _main() -> None:
    die_with_parent()
    run = RunFolder(Path(sys.argv[1]))
    plan = prepare(run)
    replace(RunRecord.read(run), plan=plan).write(run)


def main() -> int:
    """Entry point."""
    return exit_code_of(_main)


if __name__ == "__main__":
    sys.exit(main())
