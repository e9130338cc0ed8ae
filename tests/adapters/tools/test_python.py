"""PythonTool: what a function's signature and docstring become, and how it is called."""

import asyncio
import contextvars
import datetime as dt
import enum
import functools
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypedDict

import jsonschema
import pydantic
import pytest
import typing_extensions

from asynclm.adapters.tools import tool
from asynclm.adapters.tools.options import Options, ToolDefinitionError
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.threads import run_in_thread
from asynclm.cml.tools import CallError, Effect

if TYPE_CHECKING:
    from nowhere import Unknown


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


@dataclass
class Point:
    x: int
    y: int = 0


class Place(pydantic.BaseModel):
    """Somewhere."""

    title: str
    at: Point


class Options2(typing_extensions.TypedDict):
    loud: bool


@dataclass
class Tree:
    value: int
    children: "list[Tree]"


def forecast(
    city: str,
    days: int = 3,
    unit: Unit = Unit.CELSIUS,
    mode: Literal["fast", "exact"] = "fast",
    since: Optional[dt.datetime] = None,  # noqa: UP045
    place: Place | None = None,
    tags: list[str] = [],  # noqa: B006
    points: dict[str, Point] = {},  # noqa: B006
    options: Options2 = {"loud": False},  # noqa: B006
) -> dict[str, Any]:
    """Forecast the weather.

    Takes a while.

    Args:
        city: The city,
            in English.
        days: How many days.
        place: Where exactly.

    Returns:
        The forecast.
    """
    return locals()


async def run(function, /, *args, **arguments):
    return await PythonTool(function, *args).run(arguments)


def schema_of(function) -> dict[str, Any]:
    return PythonTool(function).spec.parameters


class TestSchema:
    def test_of_a_typical_function(self):
        spec = PythonTool(forecast).spec
        assert spec.name == "forecast"
        assert spec.description == "Forecast the weather.\n\nTakes a while."
        assert spec.effect is Effect.EFFECTFUL
        point = {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 0}},
            "required": ["x"],
        }
        assert spec.parameters == {
            "type": "object",
            "additionalProperties": False,
            "required": ["city"],
            "properties": {
                "city": {"type": "string", "description": "The city, in English."},
                "days": {"type": "integer", "default": 3, "description": "How many days."},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
                "mode": {"type": "string", "enum": ["fast", "exact"], "default": "fast"},
                "since": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}], "default": None},
                "place": {
                    "anyOf": [
                        {
                            "type": "object",
                            "description": "Somewhere.",
                            "properties": {"title": {"type": "string"}, "at": point},
                            "required": ["title", "at"],
                        },
                        {"type": "null"},
                    ],
                    "default": None,
                    "description": "Where exactly.",
                },
                "tags": {"type": "array", "items": {"type": "string"}, "default": []},
                "points": {"type": "object", "additionalProperties": point, "default": {}},
                "options": {
                    "type": "object",
                    "properties": {"loud": {"type": "boolean"}},
                    "required": ["loud"],
                    "default": {"loud": False},
                },
            },
        }
        assert list(spec.parameters["properties"]) == list(forecast.__annotations__)[:-1]

    def test_without_hints_or_docstring(self):
        def plain(a, b=1):
            return a, b

        assert PythonTool(plain).spec.description == ""
        assert schema_of(plain) == {
            "type": "object",
            "additionalProperties": False,
            "required": ["a"],
            "properties": {"a": {}, "b": {"default": 1}},
        }

    @pytest.mark.parametrize(
        "doc",
        [
            "Add.\n\nArgs:\n    a (int): First.\n    b: Second.\n",
            "Add.\n\nParameters\n----------\na : int\n    First.\nb : int\n    Second.\n",
            "Add.\n\n:param a: First.\n:param int b: Second.\n:returns: the sum\n",
        ],
        ids=["google", "numpy", "rest"],
    )
    def test_docstring_styles(self, doc):
        def add(a: int, b: int):
            return a + b

        add.__doc__ = doc
        spec = PythonTool(add).spec
        assert spec.description == "Add."
        assert [p["description"] for p in spec.parameters["properties"].values()] == ["First.", "Second."]

    def test_a_declared_description_wins_over_the_docstrings(self):
        def f(a: Annotated[int, pydantic.Field(description="Declared.", ge=1)]):
            """F.

            :param a: Written.
            """

        assert schema_of(f)["properties"]["a"] == {"type": "integer", "minimum": 1, "description": "Declared."}

    def test_parameters_may_have_names_that_model_classes_refuse(self):
        def f(schema: int, _private: int, model_config: int, title: int, validate: int = 1): ...

        assert list(schema_of(f)["properties"]) == ["schema", "_private", "model_config", "title", "validate"]

    def test_a_type_that_contains_itself_keeps_its_reference_and_stays_valid(self):
        def grow(tree: Tree, point: Point): ...

        schema = schema_of(grow)
        assert list(schema["$defs"]) == ["Tree"]
        assert "$ref" not in schema["properties"]["point"]
        nested = {"value": 1, "children": [{"value": 2, "children": []}]}
        jsonschema.validate({"tree": nested, "point": {"x": 1}}, schema)
        with pytest.raises(jsonschema.ValidationError, match="'no' is not of type 'integer'"):
            nested["children"][0]["value"] = "no"
            jsonschema.validate({"tree": nested, "point": {"x": 1}}, schema)

    def test_a_tagged_union_is_inlined_whole(self):
        class Cat(pydantic.BaseModel):
            kind: Literal["cat"]

        class Dog(pydantic.BaseModel):
            kind: Literal["dog"]

        def adopt(pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]): ...

        text = json.dumps(schema_of(adopt))
        assert "$defs" not in text
        assert "$ref" not in text
        assert "discriminator" not in text
        assert '"const": "dog"' in text

    def test_open_keywords(self):
        def anything(a: int, **rest): ...

        def numbers(**rest: int): ...

        assert schema_of(anything)["additionalProperties"] is True
        assert schema_of(numbers)["additionalProperties"] == {"type": "integer"}

    def test_a_default_without_a_json_form_is_still_the_default(self, recwarn):
        missing = object()

        def f(a=missing):
            return a is missing

        tool = PythonTool(f)
        assert tool.spec.parameters["properties"] == {"a": {}}
        assert asyncio.run(tool.run({})) is True
        assert not recwarn.list

    def test_what_a_partial_has_bound_is_not_the_models_to_see(self):
        def fetch(url: str, limit: int, key: str = ""):
            """Fetch a page."""
            return url, limit, key

        spec = PythonTool(functools.partial(fetch, key="sk-secret", limit=3)).spec
        assert (spec.name, spec.description) == ("fetch", "Fetch a page.")
        assert list(spec.parameters["properties"]) == ["url"]
        assert "sk-secret" not in json.dumps(spec.parameters)

    def test_of_a_builtin(self):
        import math

        assert schema_of(math.sqrt)["required"] == ["x"]


class TestRefusals:
    def test_variadic_positional(self):
        def f(*numbers: int): ...

        with pytest.raises(ToolDefinitionError, match=r"^f: parameter \*numbers can't be a tool's"):
            PythonTool(f)

    def test_a_type_without_a_schema(self):
        def f(a: int, lock: threading.Event): ...

        with pytest.raises(ToolDefinitionError, match=r"^f: parameter 'lock' has no JSON schema: .*Event") as caught:
            PythonTool(f)
        assert "\n" not in str(caught.value)

    def test_a_callable_parameter(self):
        def f(then: "typing_extensions.Callable[[], int]"): ...

        with pytest.raises(ToolDefinitionError, match="parameter 'then' has no JSON schema"):
            PythonTool(f)

    @pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes it from 3.12 on")
    def test_a_typed_dict_that_pydantic_can_not_read_says_what_to_use(self):
        class Old(TypedDict):
            a: int

        def f(old: Old): ...

        with pytest.raises(ToolDefinitionError, match=r"parameter 'old' .*use `typing_extensions.TypedDict`"):
            PythonTool(f)

    def test_a_name_that_can_not_be_resolved(self):
        def f(a: int, b: "list[Unknown]"): ...

        with pytest.raises(ToolDefinitionError, match=r"type of parameter 'b' can't be resolved: .*Unknown"):
            PythonTool(f)

    def test_an_unresolvable_return_type_does_not_matter(self):
        def f(a: int) -> "Unknown": ...

        assert schema_of(f)["properties"] == {"a": {"type": "integer"}}

    @pytest.mark.parametrize(
        ("thing", "why"),
        [(3, "int is not a function"), (Point, "Point is a class"), (lambda x: x, "no name of its own")],
    )
    def test_things_that_are_no_functions(self, thing, why):
        with pytest.raises(ToolDefinitionError, match=why):
            PythonTool(thing)

    def test_no_signature(self):
        with pytest.raises(ToolDefinitionError, match="signature can't be read"):
            PythonTool(max)

    def test_a_lambda_with_a_name_given_is_fine(self):
        assert PythonTool(lambda x: x, Options(name="same")).spec.name == "same"


class TestRun:
    async def test_arguments_get_their_python_types(self):
        found = await run(
            forecast,
            city="Bern",
            unit="kelvin",
            since="2024-05-01T12:00:00Z",
            place={"title": "Zoo", "at": {"x": 1}},
            points={"a": {"x": 2, "y": 3}},
        )
        assert found == {
            "city": "Bern",
            "days": 3,
            "unit": Unit.KELVIN,
            "mode": "fast",
            "since": dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC),
            "place": Place(title="Zoo", at=Point(1)),
            "tags": [],
            "points": {"a": Point(2, 3)},
            "options": {"loud": False},
        }

    async def test_a_mutable_default_is_not_shared(self):
        def f(items: list[int] = []):  # noqa: B006
            items.append(1)
            return items

        tool = PythonTool(f)
        assert [await tool.run({}), await tool.run({})] == [[1], [1]]

    async def test_what_the_schema_can_not_see_is_an_invalid_argument(self):
        with pytest.raises(CallError) as caught:
            await run(forecast, city="Bern", since="2024-02-31T00:00:00")
        assert caught.value.type == "invalid_arguments"
        assert caught.value.message.startswith("forecast() argument 'since': ")
        assert "2024" not in caught.value.message

    async def test_positional_only_and_keyword_only(self):
        def f(a: int, /, b: int, *, c: int = 3):
            return a, b, c

        assert await run(f, a=1, b=2) == (1, 2, 3)
        assert await run(f, a=1, b=2, c=4) == (1, 2, 4)

    async def test_open_keywords_arrive(self):
        def f(a: int, **rest: float):
            return a, rest

        assert await run(f, a=1, x=2, y=3.5) == (1, {"x": 2.0, "y": 3.5})

    async def test_every_kind_of_callable(self):
        class Counter:
            """Counts."""

            def __init__(self):
                self.count = 0

            def add(self, n: int):
                self.count += n
                return self.count

            @classmethod
            def make(cls, n: int):
                return cls.__name__, n

            @staticmethod
            def static(n: int):
                return n

            async def __call__(self, n: int):
                return self.count * n

        def decorated(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)

            return wrapper

        @decorated
        async def behind(n: int):
            """Behind a decorator that isn't async."""
            return n

        counter = Counter()
        assert await run(counter.add, n=2) == 2
        assert await run(Counter.make, n=1) == ("Counter", 1)
        assert await run(Counter.static, n=1) == 1
        assert await run(counter, n=5) == 10
        assert PythonTool(counter).spec.description == "Counts."
        assert await run(functools.partial(counter.add), n=1) == 3
        assert await run(behind, n=7) == 7
        assert PythonTool(behind).spec.description.startswith("Behind")

    async def test_async_runs_on_the_loop_and_others_in_a_thread_with_the_context(self):
        name = contextvars.ContextVar("name", default="none")
        name.set("caller")

        async def on_loop():
            return threading.current_thread(), name.get()

        def in_thread():
            seen = threading.current_thread(), name.get()
            name.set("changed")
            return seen

        assert await run(on_loop) == (threading.main_thread(), "caller")
        thread, seen = await run(in_thread)
        assert thread is not threading.main_thread()
        assert thread.daemon
        assert (seen, name.get()) == ("caller", "caller")

    async def test_blocking_functions_run_side_by_side(self):
        barrier = threading.Barrier(40)
        tool = PythonTool(lambda: barrier.wait(10), Options(name="meet"))
        assert sorted(await asyncio.gather(*(tool.run({}) for _ in range(40)))) == list(range(40))

    async def test_generators_are_run_to_their_end(self):
        def count(to: int):
            for n in range(to):
                assert threading.current_thread() is not threading.main_thread()
                yield n

        async def acount(to: int):
            for n in range(to):
                yield n

        assert await run(count, to=3) == [0, 1, 2]
        assert await run(acount, to=3) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (ValueError("no"), "no"),
            (StopIteration("no"), "StopIteration"),
            (SystemExit(3), "raised SystemExit: 3"),
            (KeyboardInterrupt(), "raised KeyboardInterrupt"),
            (asyncio.CancelledError(), "raised CancelledError"),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_what_a_blocking_function_raises_never_ends_the_loop(self, error, expected):
        def fail():
            raise error

        with pytest.raises(Exception, match=expected):
            await run(fail)


class TestThreads:
    async def test_cancelling_ends_when_the_work_has_ended(self):
        started, go = threading.Event(), threading.Event()

        def work():
            started.set()
            assert go.wait(10)

        task = asyncio.create_task(run_in_thread(work))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=0)
        assert not done
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_second_cancellation_leaves_the_thread_behind(self):
        go = threading.Event()
        task = asyncio.create_task(run_in_thread(go.wait, 10))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    def test_a_thread_may_outlive_its_loop(self):
        go, ended = threading.Event(), threading.Event()

        def work():
            go.wait(10)
            ended.set()

        async def main():
            task = asyncio.create_task(run_in_thread(work))
            await asyncio.sleep(0)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0)

        asyncio.run(main())
        go.set()
        assert ended.wait(10)

    def test_a_hanging_thread_does_not_keep_the_process_alive(self):
        code = """
import asyncio, threading
from asynclm.adapters.tools.threads import run_in_thread
async def main():
    task = asyncio.create_task(run_in_thread(threading.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
asyncio.run(main())  # cancels it once more
print("out")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "", 0)


class TestDeclarations:
    def test_the_function_stays_itself(self):
        def f(a: int) -> int:
            return a + 1

        assert tool(f) is f
        assert tool(name="g", estimate_ms=5)(f) is f
        assert f(1) == 2

    def test_all_of_it_reaches_the_spec_and_the_config_wins(self):
        @tool(
            name="look.up",
            description="Look it up.",
            estimate_ms=120,
            timeout_s=2.5,
            concurrency=4,
            effect="read_only",
            cache_s=60,
        )
        def f(): ...

        spec = PythonTool(f).spec
        assert (spec.name, spec.description, spec.estimate_ms) == ("look.up", "Look it up.", 120)
        assert (spec.timeout_s, spec.concurrency, spec.effect, spec.cache_s) == (2.5, 4, Effect.READ_ONLY, 60)
        spec = PythonTool(f, Options(name="other", effect=Effect.IDEMPOTENT, cache_s=0, description="")).spec
        assert (spec.name, spec.description, spec.effect, spec.cache_s) == ("other", "", Effect.IDEMPOTENT, 0)
        assert spec.timeout_s == 2.5

    def test_on_methods_of_every_kind_and_through_partials(self):
        class Box:
            @tool(estimate_ms=1)
            def method(self): ...

            @tool(estimate_ms=2)
            @classmethod
            def of_class(cls): ...

            @tool(estimate_ms=3)
            @staticmethod
            def static(): ...

            @tool(estimate_ms=4)
            def __call__(self): ...

        box = Box()
        callables = [box.method, Box.of_class, Box.static, box, functools.partial(box.method)]
        assert [PythonTool(c).spec.estimate_ms for c in callables] == [1, 2, 3, 4, 1]

    @pytest.mark.parametrize(
        "wrong",
        [{"effect": "none"}, {"timeout_s": 0}, {"timeout_s": float("inf")}, {"concurrency": 0}, {"estimate_ms": "1"}],
    )
    def test_values_that_make_no_sense(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tool(**wrong)

    def test_an_unknown_keyword(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'estimate'"):
            tool(estimate=3)
