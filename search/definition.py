"""What a study declares, and how it is found: by an installed name, or in a file. Importing this imports neither torch nor optuna."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast, get_type_hints

from search.errors import ConfigurationError, suggestion
from search.recipe import Recipe, check, settable
from search.space import Choice, Float, Integer, Range, idle, up_to
from search.trusted import trust, trusted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from grow.task import Samples, Task

    NetworkFactory: TypeAlias = Callable[[], nn.Module]

STANDARD_PARAMETERS: Mapping[str, Range] = {
    "initial": Choice(("erk", "minimal", "radixnet", "dense")),
    "density": Float(0.02, 0.5, log=True),
    "update_interval": Integer(10, 80, log=True),
    "drop_fraction": Float(0.05, 0.5),
    "growth": Choice(("gradient", "random")),
    "pruning": Choice(("magnitude", "obd")),
    "price": Float(4.0, 1024.0, log=True),
    "imbalance": Float(0.02, 0.2),
    "devices": Integer(1, 1024),
    "strategy": Choice(("data", "units")),
}
"""What a study searches unless it says otherwise. The number of devices ends at the number asked for."""


@dataclass(frozen=True)
class DataSource:
    """Which data a run uses: its name, one hash over all of it, its folder (None when held in memory), and the samples of each split."""

    name: str
    sha256: str
    folder: Path | None
    train: int
    validation: int
    test: int


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyDefinition:
    """A task, its start networks, and which recipe fields are searched, and which are set.

    data: finds and verifies the data in a folder, or wherever it usually is; quick, without torch. task: on that data, with a batch
    size and a seed. networks: each a factory or "module:function", the first is the default. example: an input (1, ...).
    parameters, settings: recipe fields that are searched, that are set; what neither names is searched as in STANDARD_PARAMETERS, else as
    Recipe has it. first_guesses: values of some parameters, tried before the sampler takes over; without ``devices``, on all of them.
    """

    name: str
    data: Callable[[Path | None], DataSource]
    task: Callable[[DataSource, int, int], Task]
    networks: Mapping[str, str | NetworkFactory]
    example: Callable[[], Tensor]
    summary: str = ""
    parameters: Mapping[str, Range] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    first_guesses: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not self.networks:
            raise ConfigurationError(f"networks of the study {self.name} is empty, but must name at least one start network; add one")
        for name in self.parameters:
            if name in self.settings:
                raise ConfigurationError(f"{name} is searched and set, but must be one of the two; take it out of parameters or settings")
        _check_fields([(name, end) for name, values in self.parameters.items() for end in values.ends] + list(self.settings.items()))
        for name, value in ((name, value) for guess in self.first_guesses for name, value in guess.items()):
            if name not in self.searched:
                raise ConfigurationError(f"a first guess has {name}, but must be of {', '.join(self.searched)}; leave it out")
            if value not in self.searched[name]:
                raise ConfigurationError(f"{name} is {value!r} in a first guess, but must be in {self.searched[name]}; mend either")

    @classmethod
    def from_samples(
        cls,
        name: str,
        training: Samples,
        validation: Samples,
        test: Samples,
        *,
        networks: Mapping[str, str | NetworkFactory],
        summary: str = "",
        parameters: Mapping[str, Range] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> StudyDefinition:
        """A study that classifies samples held in memory."""
        from grow.task import Classification

        return cls(
            name=name,
            data=lambda folder: _source_in_memory(name, folder, training, validation, test),
            task=lambda source, batch_size, seed: Classification(training, validation, lambda: test, batch_size, seed),
            networks=networks,
            example=lambda: training.inputs[:1],
            summary=summary,
            parameters=parameters or {},
            settings=settings or {},
        )

    @cached_property
    def searched(self) -> dict[str, Range]:
        """The range of every field that is searched."""
        return {name: values for name, values in STANDARD_PARAMETERS.items() if name not in self.settings} | dict(self.parameters)

    def ranges(self, devices: int) -> dict[str, Range]:
        """The range of every field that is searched, when this number of devices was asked for."""
        return up_to(self.searched, devices)

    def guesses(self, devices: int) -> list[dict[str, object]]:
        """The first guesses on this number of devices, each once: no more devices than that, and nothing that decides nothing then."""
        allowed = self.ranges(devices).get("devices")
        guesses: list[dict[str, object]] = []
        for guess in self.first_guesses:
            values = dict(guess)
            if isinstance(allowed, Integer):
                values["devices"] = min(cast(int, guess.get("devices", allowed.high)), allowed.high)
            unused = idle({**self.settings, **values})
            values = {name: value for name, value in values.items() if name not in unused}
            if values not in guesses:
                guesses.append(values)
        return guesses

    def fixing(self, settings: Mapping[str, object]) -> StudyDefinition:
        """The same study with these fields set instead of searched, as by ``--set``."""
        return replace(
            self,
            parameters={name: values for name, values in self.parameters.items() if name not in settings},
            settings={**self.settings, **settings},
            first_guesses=tuple({name: value for name, value in guess.items() if name not in settings} for guess in self.first_guesses),
        )

    def network_name(self, name: str | None) -> str:
        """The name of the default network, or the name given if there is such a network, here or among the installed ones."""
        if name is None:
            return next(iter(self.networks))
        _look_up(name, [*self.networks, *_installed_networks()], "network", "a start network of the study or an installed one")
        return name

    def network(self, name: str | None) -> NetworkFactory:
        """The factory of a start network, by default the first. Only this imports what makes networks, and so torch."""
        name = self.network_name(name)
        factory = self.networks.get(name) or _installed_networks()[name]
        if isinstance(factory, str):
            factory = EntryPoint(name, factory, "grow.networks")
        return cast("NetworkFactory", factory.load()) if isinstance(factory, EntryPoint) else factory


@dataclass(frozen=True)
class StudyReference:
    """How a study is named: an installed name, or ``/absolute/path.py:NAME`` with the hash that the file had."""

    text: str
    sha256: str | None = None

    def load(self) -> StudyDefinition:
        """The study. ConfigurationError when it is not there, is none, or is a file of a content that the user never named."""
        study = _load_file(self.text, self.sha256) if self.sha256 else _installed_study(self.text).load()
        if not isinstance(study, StudyDefinition):
            raise ConfigurationError(f"study {self.text} is of type {type(study).__name__}, but must be a StudyDefinition; name another")
        return study


def check_reference(text: str) -> StudyReference:
    """What the user names with ``--study``, checked as far as that goes without running code; its file is trusted from now on."""
    path, name = _path_and_name(text)
    if path is None:
        _installed_study(text)
        return StudyReference(text)
    if not path.is_file():
        raise ConfigurationError(f"study is {text}, but must name a file that exists; {path} does not")
    if not name.isidentifier():
        raise ConfigurationError(
            f"study is {text}, but must be path.py:NAME; add the name of the study in the file, as in {path.name}:NAME"
        )
    return StudyReference(f"{path}:{name}", trust(path.read_text(encoding="utf-8")))


def installed() -> dict[str, StudyDefinition]:
    """The installed studies by name."""
    return {name: StudyReference(name).load() for name in sorted(_installed_studies())}


def _installed_studies() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="grow.studies")}


def _installed_study(name: str) -> EntryPoint:
    points = _installed_studies()
    _look_up(name, points, "study", "path.py:NAME or an installed study")
    return points[name]


def installed_network(name: str) -> NetworkFactory:
    """The factory of an installed start network, without any study."""
    points = _installed_networks()
    _look_up(name, points, "network", "an installed start network")
    return cast("NetworkFactory", points[name].load())


def _installed_networks() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="grow.networks")}


def file_of(study: str) -> Path | None:
    """The file of a study that is named by path, None for an installed one."""
    return _path_and_name(study)[0]


def _path_and_name(text: str) -> tuple[Path | None, str]:
    path, _, name = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
    return (Path(path).expanduser().resolve() if path.endswith(".py") else None), name


def _load_file(text: str, sha256: str) -> object:
    path, name = _path_and_name(text)
    assert path is not None
    content = trusted(sha256)
    if content is None:
        raise ConfigurationError(
            f"study {text} with the sha256 {sha256} is not yours, but must be a file that you have named, since it is run as code; "
            f"look at it, and name it once with: grow run --study {text} --gpus 1 --print-config"
        )
    module_name = f"grow_study_{sha256[:16]}"
    spec = spec_from_file_location(module_name, path)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[module_name] = module  # where a dataclass looks for the module that it is in
    try:
        exec(compile(content, str(path), "exec"), vars(module))  # what was trusted, and not what the file may hold by now
    except Exception as error:  # a stranger's code may raise anything
        raise ConfigurationError(f"study file {path} raised {type(error).__name__}: {error}; mend the file") from error
    names = [known for known, value in vars(module).items() if isinstance(value, StudyDefinition)]
    _look_up(name, names, "the name in " + path.name, "a StudyDefinition in that file")
    return vars(module)[name]


def _check_fields(values: Iterable[tuple[str, object]]) -> None:
    annotations = get_type_hints(Recipe, include_extras=True)
    for name, value in values:
        _look_up(name, settable(), "a field of a study", "a field of Recipe that a study may decide")
        check(name, annotations[name], value)


def _look_up(name: str, known: Iterable[str], what: str, rule: str) -> None:
    names = tuple(known)
    if name not in names:
        raise ConfigurationError(f"{what} is {name!r}, but must be {rule} ({', '.join(names)}){suggestion(name, names)}")


def _source_in_memory(name: str, folder: Path | None, *splits: Samples) -> DataSource:
    if folder is not None:
        raise ConfigurationError(f"data_dir is {folder}, but must not be given: the study {name} brings its own data; leave it out")
    content = hashlib.sha256()
    for tensor in (tensor for samples in splits for tensor in (samples.inputs, samples.targets)):
        content.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    train, validation, test = map(len, splits)
    return DataSource(name, content.hexdigest(), None, train, validation, test)
