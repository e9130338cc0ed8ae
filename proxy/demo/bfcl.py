"""The Berkeley Function-Calling Leaderboard as a source of tasks: its samples, its tools, its ground truth, its checks.

`bfcl-eval` is used without its dependencies: only its data, the classes that implement its tools and its state checker
are read. A *sample* is the first round of one of its multi-turn base conversations, a chain of calls; a *case* joins
three samples that share no class into one task (paper, section 6, multi-step-parallel).
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from asynclm.cml.body import parse_body
from asynclm.cml.tools import ToolSpec

INSTALL: Final = "pip install --no-deps 'bfcl-eval==2026.3.23' && pip install mpmath"

_DATASET: Final = "BFCL_v4_multi_turn_base.json"
_SOURCES: Final = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
# class -> module of its implementation, file of its tools' documentation
_CLASSES: Final = {
    "GorillaFileSystem": ("gorilla_file_system", "gorilla_file_system.json"),
    "MathAPI": ("math_api", "math_api.json"),
    "MessageAPI": ("message_api", "message_api.json"),
    "TicketAPI": ("ticket_api", "ticket_api.json"),
    "TradingBot": ("trading_bot", "trading_bot.json"),
    "TravelAPI": ("travel_booking", "travel_booking.json"),
    "TwitterAPI": ("posting_api", "posting_api.json"),
    "VehicleControlAPI": ("vehicle_control", "vehicle_control.json"),
}
_STATELESS: Final = frozenset({"MathAPI"})
_JSON_TYPES: Final = {"dict": "object", "float": "number", "tuple": "array"}  # BFCL's words for them
_PER_CASE: Final = 3

_T = TypeVar("_T")


class MissingDatasetError(Exception):
    """`bfcl-eval` (or mpmath, which it needs) is not there, or not as it should be; the message says what to do."""


class Sample(msgspec.Struct, frozen=True):
    """The first round of a BFCL conversation. `calls` are the ground truth's, in order, each as a Python call."""

    id: str
    question: str
    calls: tuple[str, ...]
    classes: tuple[str, ...]
    initial_config: dict[str, Any]
    excluded: tuple[str, ...] = ()


class Case(msgspec.Struct, frozen=True):
    """Samples that are one task together, their chains side by side."""

    number: int
    samples: tuple[Sample, ...]


class _Entry(msgspec.Struct):
    id: str
    question: list[list[dict[str, str]]]
    initial_config: dict[str, Any]
    involved_classes: list[str]
    excluded_function: list[str] = []


class _Answer(msgspec.Struct):
    id: str
    ground_truth: list[list[str]]


class Doc(msgspec.Struct):
    """A function, as BFCL documents it."""

    name: str
    description: str
    parameters: dict[str, Any]


def load_samples(min_calls: int = 2, max_calls: int = 5) -> list[Sample]:
    """The samples with that many calls in their first round, in the dataset's order. Raises `MissingDatasetError`."""
    data = data_folder()
    answers = {answer.id: answer.ground_truth for answer in read_lines(data / "possible_answer" / _DATASET, _Answer)}
    samples = []
    for entry in read_lines(data / _DATASET, _Entry):
        calls = answers[entry.id][0]
        if min_calls <= len(calls) <= max_calls:
            samples.append(
                Sample(
                    id=entry.id,
                    question=" ".join(message["content"] for message in entry.question[0]),
                    calls=tuple(calls),
                    classes=tuple(entry.involved_classes),
                    initial_config=entry.initial_config,
                    excluded=tuple(entry.excluded_function),
                )
            )
    return samples


def draw_cases(samples: Sequence[Sample], count: int, seed: int) -> list[Case]:
    """Draw different cases, the same ones for the same seed. Raises ValueError if `samples` can't yield that many."""
    chance = random.Random(seed)
    seen: set[frozenset[str]] = set()
    cases: list[Case] = []
    for _ in range(200 * count):
        if len(cases) == count:
            break
        drawn: list[Sample] = []
        for _ in range(_PER_CASE):
            taken = {name for sample in drawn for name in sample.classes}
            free = [sample for sample in samples if taken.isdisjoint(sample.classes)]
            if free:
                drawn.append(chance.choice(free))
        ids = frozenset(sample.id for sample in drawn)
        if len(drawn) == _PER_CASE and ids not in seen:
            seen.add(ids)
            cases.append(Case(len(cases) + 1, tuple(drawn)))
    if len(cases) < count:
        raise ValueError(f"only {len(cases)} different cases could be drawn, not {count}")
    return cases


class World:
    """Fresh instances of a case's classes: what its tools act upon. Raises `MissingDatasetError`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.instances: dict[str, Any] = {}
        for sample in samples:
            for name in sample.classes:
                instance = _class(name)()
                if name not in _STATELESS:
                    config = copy.deepcopy(sample.initial_config.get(name, {}))
                    instance._load_scenario(config, long_context=False)
                self.instances[name] = instance
        self._methods = {
            name: method
            for instance in self.instances.values()
            for name, method in inspect.getmembers(instance, inspect.ismethod)
            if not name.startswith("_")
        }

    def call(self, name: str, /, *positional: Any, **named: Any) -> Any:
        """Run one tool. Raises KeyError for one that isn't there, and whatever the tool raises."""
        return self._methods[name](*positional, **named)

    def run(self, calls: Sequence[str]) -> list[Any]:
        """Run calls one after the other: their results, as JSON would carry them."""
        results = []
        for body in calls:
            invocation = parse_body(body)
            results.append(as_json(self.call(invocation.name, *invocation.positional, **invocation.named)))
        return results


def tool_specs(sample: Sample) -> list[ToolSpec]:
    """The tools that BFCL offers for a sample, as it documents them. Raises `MissingDatasetError`."""
    folder = data_folder() / "multi_turn_func_doc"
    return [
        ToolSpec(
            name=doc.name,
            # What comes before is the same for all tools of a class.
            description=doc.description.rpartition("Tool description: ")[2],
            parameters=json_schema(doc.parameters),
        )
        for name in sample.classes
        for doc in read_lines(folder / _CLASSES[name][1], Doc)
        if doc.name not in sample.excluded
    ]


def state_difference(world: World, truth: World) -> str | None:
    """What BFCL's own state checker finds different between two worlds, None where it finds them equal."""
    checker = _import("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
    found = checker.state_checker(world.instances, truth.instances)
    if found["valid"]:
        return None
    return f"{found['error_message']} {found['details']['differences']}"


def as_json(value: object) -> Any:
    """The value as it comes out of JSON: tuples are lists, keys are strings."""
    return msgspec.json.decode(msgspec.json.encode(value))


def json_schema(schema: Any) -> Any:
    """A BFCL parameter description as JSON schema."""
    if not isinstance(schema, dict):
        return schema
    found = {key: json_schema(value) for key, value in schema.items()}
    kind = found.get("type")
    if isinstance(kind, str):
        if kind == "any":
            del found["type"]
        else:
            found["type"] = _JSON_TYPES.get(kind, kind)
    return found


def data_folder() -> Path:
    """Where bfcl-eval's data lies. Raises `MissingDatasetError`."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        raise MissingDatasetError(f"bfcl-eval is not installed: {INSTALL}")
    return Path(spec.origin).parent / "data"


def read_lines(file: Path, kind: type[_T]) -> list[_T]:
    """Read one of its files: one JSON document a line. Raises `MissingDatasetError`."""
    try:
        return msgspec.json.Decoder(kind).decode_lines(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise MissingDatasetError(
            f"this version of bfcl-eval can't be used ({file.name}: {error}): {INSTALL}"
        ) from None


def _class(name: str) -> Any:
    return getattr(_import(f"{_SOURCES}.{_CLASSES[name][0]}"), name)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDatasetError(f"the module {error.name} is not installed: {INSTALL}") from None
