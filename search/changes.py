"""What of a run is not as it was when it began: its configuration, its study, the code and the libraries that it runs on.

A run is repeatable only as long as none of them changes, so resuming says what did, and goes on only when that is wanted. What was begun
is then finished as it began, by the copy of the study's file that is kept for the user; new trials follow what has changed.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from difflib import unified_diff
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from search.definition import file_of
from search.errors import ConfigurationError, RunNotFoundError
from search.files import read_json_if_valid, write_json
from search.options import Options, RunRecord
from search.rundir import RunFolder
from search.trusted import trust, trusted

PACKAGES = ("grow", "hardware", "search")
"""Packages of which every change may change a trial."""

SHOWN_ONLY = ("search/cli/",)
"""Where changes cannot change a trial."""

LIBRARIES = ("growprune", "torch", "optuna", "numpy")

COMPARABLE = ("study", "gpus", "gpus_per_trial", "device", "hardware", "throughput")
"""Options without which the trials of a run could not be compared with each other."""


def versions() -> dict[str, str]:
    """Versions of python and of what the results of a run depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def record_code(folder: RunFolder, options: Options) -> None:
    """Keep what a later resume is compared with: hashes of the code."""
    write_json(folder.code, code_of(options.study))


def code_of(study: str) -> dict[str, object]:
    """The sha256 of every source file that a run depends on, by package and path. A study that was given by path has its own record."""
    folders = {package: _folder_of(package) for package in PACKAGES}
    if file_of(study) is None:
        module = _module_of(study)
        folders[module] = _folder_of(module)
    found: dict[str, object] = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            if not name.startswith(SHOWN_ONLY):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _folder_of(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _module_of(study: str) -> str:
    """The topmost package of an installed study, which can be found without importing anything."""
    from importlib.metadata import entry_points

    return next(point.module.partition(".")[0] for point in entry_points(group="grow.studies") if point.name == study)


def changes(folder: RunFolder, record: RunRecord, options: Options) -> list[str]:
    """What has changed since the run began or was last allowed to change, as the lines of a diff."""
    return [*_options(record, options), *_study(record, options), *_code(folder, options), *_versions(record)]


def accept(folder: RunFolder, record: RunRecord, options: Options) -> RunRecord:
    """Let the run go on with what has changed. ConfigurationError where its trials could no longer be compared. Returns its new record."""
    from dataclasses import replace

    for name in COMPARABLE:
        was = None if record.options is None else record.options.get(name)
        now = asdict(options)[name]
        if record.options is not None and was != now:
            raise ConfigurationError(f"{name} is {now!r} in {folder.config}, but must be {was!r} as in the trials so far; start a new run")
    path = file_of(options.study)
    sha256 = None if path is None else trust(path.read_text(encoding="utf-8"))
    record_code(folder, options)
    accepted = replace(record, options=asdict(options), versions=versions(), study_sha256=sha256, plan=None)
    accepted.write(folder)
    return accepted


def _options(record: RunRecord, options: Options) -> Iterator[str]:
    if record.options is None:
        return
    now = asdict(options)
    for name, was in record.options.items():
        if name != "trials" and now[name] != was:  # the budget may be raised at any time
            yield f"- {name} = {json.dumps(was)}"
            yield f"+ {name} = {json.dumps(now[name])}"


def _study(record: RunRecord, options: Options) -> Iterator[str]:
    path = file_of(options.study)
    if path is None or record.study_sha256 is None:
        return
    if not path.is_file():
        raise RunNotFoundError(f"{path} is missing, but must be there, the study of the run; put it back")
    was, now = trusted(record.study_sha256), path.read_text(encoding="utf-8")
    if was is None:
        yield f"+ {path}, which is run as code, was never named here"
    if was != now:
        yield from unified_diff((was or "").splitlines(), now.splitlines(), f"{path} (when the run began)", str(path), lineterm="")


def _code(folder: RunFolder, options: Options) -> Iterator[str]:
    was, now = read_json_if_valid(folder.code), code_of(options.study)
    if was is None:
        yield f"- {folder.code}, which is missing or damaged: whether the code is what it was cannot be told"
        return
    yield from (f"- {name}" for name in was if name not in now)
    yield from (f"+ {name}" for name in now if name not in was)
    yield from (f"! {name}" for name in now if name in was and was[name] != now[name])


def _versions(record: RunRecord) -> Iterator[str]:
    now: Mapping[str, str] = versions()
    for name, was in record.versions.items():
        if now.get(name) != was:
            yield f"- {name} {was}"
            yield f"+ {name} {now.get(name)}"
