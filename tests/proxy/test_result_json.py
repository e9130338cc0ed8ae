"""Results as JSON text: always valid, never longer than allowed."""

import array
import datetime as dt
import decimal
import enum
import json
import math
from dataclasses import dataclass

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.proxy.result_json import MIN_RESULT_BYTES, result_json

LIMIT = 65_536


class Unit(enum.Enum):
    KELVIN = "kelvin"


@dataclass
class Point:
    x: int
    when: dt.date


class Model(pydantic.BaseModel):
    point: Point


class Record(msgspec.Struct):
    day: dt.date


DAY = dt.date(2024, 5, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        ({"a": [1, 2.5, True], "b": "ü"}, '{"a":[1,2.5,true],"b":"ü"}'),
        (2**100, "1267650600228229401496703205376"),
        ([math.nan, math.inf, -math.inf], "[null,null,null]"),
        (dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC), '"2024-05-01T12:00:00Z"'),
        (decimal.Decimal("1.50"), '"1.50"'),
        (Unit.KELVIN, '"kelvin"'),
        (Point(1, DAY), '{"x":1,"when":"2024-05-01"}'),
        ({"m": [Model(point=Point(1, DAY))]}, '{"m":[{"point":{"x":1,"when":"2024-05-01"}}]}'),
        (Record(DAY), '{"day":"2024-05-01"}'),
        ({3}, "[3]"),
        (b"ab", '"YWI="'),
        ({(1, 2): 3, 4: 5}, '{"1,2":3,"4":5}'),
        # What numpy has as well: `tolist`.
        ({"a": array.array("i", [1, 2])}, '{"a":[1,2]}'),
        (array.array("d", [math.nan]), "[null]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_forms(value, expected):
    assert result_json(value, LIMIT) == expected


@pytest.mark.parametrize(
    "value",
    [object(), [print], "\ud800", {"a": ValueError("x")}],
    ids=["object", "list of a function", "lone surrogate", "dict of an error"],
)
def test_what_has_no_form(value):
    with pytest.raises(Exception, match=r"serializable|serializing"):
        result_json(value, LIMIT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
)


@given(JSON, st.integers(MIN_RESULT_BYTES, 600))
def test_whatever_it_is_it_is_valid_and_short_enough(value, limit):
    text = result_json(value, limit)
    assert len(text.encode()) <= limit
    whole = result_json(value, LIMIT * 1000)
    if text == whole:
        assert json.loads(text) == value
    else:
        cut = json.loads(text)
        assert cut["truncated"] is True
        assert (value if isinstance(value, str) else whole).startswith(cut["value"])


@given(st.text(min_size=600), st.integers(MIN_RESULT_BYTES, 600))
def test_as_much_is_kept_as_fits(text, limit):
    kept = json.loads(result_json(text, limit))["value"]
    assert text.startswith(kept)
    longer = json.loads(result_json(text, limit))
    longer["value"] = text[: len(kept) + 1]
    assert len(json.dumps(longer, separators=(",", ":"), ensure_ascii=False).encode()) > limit


def test_the_note_says_what_happened():
    cut = json.loads(result_json({"text": "x" * 1000}, 300))
    assert cut["note"] == "the result was 1011 bytes long, the limit is 300: this is only its beginning"
    assert cut["value"].startswith('{"text":"xxx')
