"""Recipe: everything that decides one trial, as a record that survives JSON unchanged.

A worker is given nothing but the file of a recipe (and the run's frozen hardware profile beside it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from typing import Annotated, Literal, TypeAlias, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError

from search.errors import ConfigurationError, suggestion

SCHEMA_VERSION = 1

TrialRole: TypeAlias = Literal["baseline_dense", "baseline_data_parallel", "search"]
Count: TypeAlias = Annotated[int, Ge(1)]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
NotNegative: TypeAlias = Annotated[float, Ge(0), Lt(float("inf"))]
Price: TypeAlias = NotNegative | Literal["machine"]


BY_UNITS = ("model", "owt", "units")
"""Strategies that divide units; ``units`` is what ``model`` was called first."""

PRICED = "source_group"
"""The pattern in which what crosses has a price: groups of one source unit and one part."""

UNPRICED = (
    f"plays no role: only pattern {PRICED!r} has a price, and only where a strategy of several devices divides units "
    f"({', '.join(BY_UNITS)}, or layouts)"
)

HASTENERS = ("autocast", "compile")
"""Fields that have a whole network computed otherwise than layer by layer in float32."""

WHOLE_ALONE = (
    "whose ranks compute parts that are not compiled, and add up sums that must round as those of one process do; "
    "take one device, or leave it out"
)
"""Why they are for one device."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides one trial.

    initial: the seed topology. density: final connections as a share of the dense start network's. update_interval: steps
    between updates. drop_fraction: share of the live connections replaced at one update. price: of one more halo unit, in
    median saliencies; ``machine``: as many as the connections that the machine computes in the time of sending it, by the profile.
    schedule, schedule_begin, schedule_end, updates_end, rounds, cycles: see `grow.plan.Plan`. evidence_batches: of evidence at every
    update; with 0, the cheapest on one device, growth takes the gradient of the training step after the pruning, and comes one step later.
    birth: of units. apoptosis: bound of merging redundant units, 0 merges none.
    devices, strategy, partitioner, imbalance: how the final network is split; ``layouts``: of every space, where the strategy is
    ``mixed``, which is every one without a name. repartition: whether units are divided anew after every
    update, as far as it pays. autocast: whether products are computed in bfloat16 (by kernels that know it; others stay in float32),
    and compile: whether the network is compiled by `torch.compile`; both on one device alone. threads: of the worker.
    Raises ConfigurationError (a ValueError) that names the field, its value and the rule.

    >>> Recipe(study="digits", network="mlp", data_sha256="", number=2, role="search", density=1.3)
    Traceback (most recent call last):
    search.errors.ConfigurationError: density is 1.3, but must be in (0, 1]
    """

    study: str
    study_sha256: str | None = None
    network: str
    data_dir: str | None = None
    data_sha256: str
    number: Annotated[int, Ge(0)]
    role: TrialRole
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0

    initial: Literal["dense", "erk", "erdos_renyi", "expander", "radixnet", "radixnet_permuted", "minimal"] = "dense"
    density: Annotated[float, Gt(0), Le(1)] = 1.0
    update_interval: Count = 100
    drop_fraction: Share = 0.3
    growth: Literal["gradient", "momentum", "random"] = "gradient"
    pruning: Literal[
        "magnitude", "lamp", "taylor", "snip", "obd", "obd_fisher", "obd_mc_fisher", "obd_hutchinson", "obd_signed", "synflow", "grasp",
        "movement", "gradient", "momentum", "random", "connectivity", "magnitude_then_obd", "taylor_then_obd",
    ] = "magnitude"  # fmt: skip
    pattern: Literal[
        "unstructured", "source_group", "block_2x2", "block_4x4", "block_8x8", "block_1x8", "1_of_2", "2_of_4", "1_of_4", "fan_in"
    ] = "unstructured"  # fmt: skip
    price: Price = 0.0
    schedule: Literal["cubic", "linear", "one_shot", "iterative", "continuous", "cyclic"] = "cubic"
    schedule_begin: Share = 0.0
    schedule_end: Share = 0.6
    updates_end: Share = 0.75
    rounds: Count = 5
    cycles: Count = 3
    evidence_batches: Annotated[int, Ge(0)] = 1
    allocation: Literal["global", "uniform", "erdos_renyi", "erk"] = "global"
    birth: Literal["random", "split", "gradmax", "bridging"] = "random"
    apoptosis: Annotated[float, Ge(0), Lt(1)] = 0.0

    devices: Count = 1
    strategy: Literal["single", "data", "model", "owt", "units", "mixed"] = "single"
    layouts: dict[str, Literal["whole", "batch", "units"]] | None = None
    partitioner: Literal["contiguous", "metis", "mtkahypar"] = "mtkahypar"
    imbalance: Share = 0.03
    repartition: bool = False

    steps: Count = 1000
    batch_size: Count = 128
    learning_rate: Annotated[float, Gt(0), Lt(float("inf"))] = 1e-3
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: NotNegative = 0.0

    autocast: bool = False
    compile: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Count = 1
    checkpoint_interval: Count = 200

    def __post_init__(self) -> None:
        for name, annotation in _annotations().items():
            check(name, annotation, getattr(self, name))
        if (self.devices == 1) != (self.strategy == "single"):
            rule = "'single' on one device" if self.devices == 1 else f"'data', 'model' or 'owt' on {self.devices} devices"
            raise ConfigurationError(f"strategy is {self.strategy!r}, but must be {rule}")
        if (self.strategy == "mixed") != (self.layouts is not None):
            rule = "given where strategy is 'mixed', and only there; let `grow plan --save` write them"
            raise ConfigurationError(f"layouts is {self.layouts!r}, but must be {rule}")

        if self.hastened and self.devices > 1:
            raise ConfigurationError(f"{self.hastened} is True, but must be False on {self.devices} devices, {WHOLE_ALONE}")

    @property
    def hastened(self) -> str:
        """The first of ``autocast`` and ``compile`` that is asked for; empty where none is."""
        return next((name for name in HASTENERS if getattr(self, name)), "")

    @property
    def how(self) -> str | dict[str, Literal["whole", "batch", "units"]]:
        """The strategy: its name, or the layout of every space."""
        return self.strategy if self.layouts is None else self.layouts

    @property
    def by_units(self) -> bool:
        """Whether units are divided over the devices, so that they have parts and what crosses has a price."""
        return self.strategy in BY_UNITS or "units" in (self.layouts or {}).values()

    @property
    def priced(self) -> bool:
        """Whether the price decides anything: connections are grown and pruned by source unit and part, and there are parts."""
        return self.pattern == PRICED and self.by_units

    def to_json(self) -> dict[str, object]:
        """As plain data, with the version of the schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Recipe:
        """From plain data; a field that is missing, unknown or of another schema is an error."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ConfigurationError(
                f"schema_version is {data.get('schema_version')!r}, but must be {SCHEMA_VERSION}; use the version of grow that wrote it"
            )
        values = {name: value for name, value in data.items() if name != "schema_version"}
        return recipe(values)


FIXED_BY_THE_RUN = frozenset({"study", "study_sha256", "network", "data_dir", "data_sha256", "number", "role", "seed", "device", "layouts"})
"""Fields that follow from the run, the trial's number or a plan, which neither a study nor `--set` decides."""


def settable() -> tuple[str, ...]:
    """Names of the fields that a study or `--set` may decide."""
    return tuple(field.name for field in fields(Recipe) if field.name not in FIXED_BY_THE_RUN)


def default(name: str) -> object:
    """The value of a field that neither the study nor the user decides."""
    value = next(field for field in fields(Recipe) if field.name == name).default
    assert value is not MISSING
    return value


def recipe(values: Mapping[str, object]) -> Recipe:
    """A recipe of these fields; ConfigurationError for a name that is none and for a field that is missing."""
    known = tuple(field.name for field in fields(Recipe))
    for name in values:
        if name not in known:
            raise ConfigurationError(f"{name} is no field of a recipe{suggestion(name, known)}")
    missing = [field.name for field in fields(Recipe) if field.default is MISSING and field.name not in values]
    if missing:
        raise ConfigurationError(f"{missing[0]} is missing in a recipe, but must be given")
    return Recipe(**dict(values))  # type: ignore[arg-type]  # every value is checked by Recipe itself


def check(name: str, annotation: object, value: object) -> None:
    """ConfigurationError when ``value`` is not what ``annotation`` allows, worded from the annotation."""
    try:
        _adapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        raise ConfigurationError(f"{name} is {value!r}, but must be {_rule(annotation)}{_meant(annotation, value)}") from error


def parse_setting(text: str) -> tuple[str, object]:
    """Read one ``key=value`` of `--set`.

    >>> parse_setting("density=0.05")
    ('density', 0.05)
    """
    name, equals, raw = text.partition("=")
    known = settable()
    if not equals:
        raise ConfigurationError(f"--set is {text!r}, but must be key=value; write for example --set steps=100")
    if name not in known:
        raise ConfigurationError(
            f"--set names {name!r}, but must name one of {', '.join(known)}{suggestion(name, known)}",
        )
    annotation = _annotations()[name]
    try:
        return name, _adapter(annotation).validate_strings(raw)
    except ValidationError as error:
        remedy = _meant(annotation, raw) or f"; choose another with --set {name}=..."
        raise ConfigurationError(f"{name} is {_shown(raw)}, but must be {_rule(annotation)}{remedy}") from error


@cache
def _annotations() -> dict[str, object]:
    return get_type_hints(Recipe, include_extras=True)


@cache
def _adapter(annotation: object) -> TypeAdapter[object]:
    return TypeAdapter(annotation)  # type: ignore[arg-type]  # a type form, which python cannot yet say


def _rule(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        base, *bounds = get_args(annotation)
        return f"{'an integer ' if base is int else ''}{_interval(bounds)}"
    if annotation == Price:
        return f"{_rule(NotNegative)}, or 'machine'"
    if annotation is bool:
        return "true or false"
    if annotation not in (int, float, str, str | None):
        return "the layout of every space, 'whole', 'batch' or 'units', or nothing"
    return {int: "an integer", float: "a number", str: "text"}.get(annotation, "text or nothing")  # type: ignore[call-overload, no-any-return]


def _interval(bounds: list[object]) -> str:
    low, high = "(-inf", "inf)"
    for bound in bounds:
        match bound:
            case Gt(gt=value):
                low = f"({value}"
            case Ge(ge=value):
                low = f"[{value}"
            case Lt(lt=value):
                high = f"{value})"
            case Le(le=value):
                high = f"{value}]"
    return f"in {low}, {high}"


def _meant(annotation: object, value: object) -> str:
    return suggestion(str(value), get_args(annotation)) if get_origin(annotation) is Literal else ""


def _shown(raw: str) -> str:
    try:
        float(raw)
    except ValueError:
        return repr(raw)
    return raw
