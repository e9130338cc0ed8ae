"""Call bodies: what is read, and what is refused in words that help."""

import json

import pytest

from asynclm.cml.body import MAX_BODY_CHARS, parse_body
from asynclm.cml.tools import CallError, Invocation


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ("f()", Invocation("f")),
        ("a.b.f(1, x=-2.5)", Invocation("a.b.f", (1,), {"x": -2.5})),
        ("f((1, [2]), {'k': None}, s='a' 'b')", Invocation("f", ([1, [2]], {"k": None}), {"s": "ab"})),
        ("f(x=true, y=null)", Invocation("f", (), {"x": True, "y": None})),
        (r"f(s='\d')", Invocation("f", (), {"s": r"\d"})),
        ('{"name": "f", "arguments": {"x": [1]}}', Invocation("f", (), {"x": [1]})),
        ('{"name": "f"}', Invocation("f")),
        ('{"name": "f", "arguments": "{\\"x\\": 1}"}', Invocation("f", (), {"x": 1})),
    ],
)
def test_reads(body: str, call: Invocation) -> None:
    assert parse_body(body) == call


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "empty"),
        ("f", "a call looks like f(x=1)"),
        ("f(", "never closed"),
        ("f(x=g())", "must be literals"),
        ("f(x=1 + 2)", "must be literals"),
        ("f(x=__import__('os'))", "must be literals"),
        ("f(x=f'{1}')", "must be literals"),
        ("f(x=b'1')", "must be literals"),
        ("f(*[1])", "* is not supported"),
        ("f(**{'a': 1})", "** is not supported"),
        ("f(x=1, x=2)", "x is given twice"),
        ("f({1: 2})", "keys of a dict must be strings"),
        ("f()()", "plain name"),
        ("f(x=0x" + "f" * 4000 + ")", "too large"),
        ("f(x='" + "a" * MAX_BODY_CHARS + "')", "longer than"),
        ("f(" + "[" * 5000, "call could not be read"),
        ("f(x=\0)", "call could not be read"),
        ("{", "not valid JSON"),
        ("{}", '"name" is missing'),
        ('{"name": "f", "arguments": []}', "must be an object"),
        ('{"name": "f", "arguments": "\ud83d"}', "not valid JSON"),
        (json.dumps({"name": "f", "arguments": {"x": [10**400]}}), "could not be read"),
    ],
)
def test_refuses(body: str, said: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_body(body)
    assert caught.value.type == "syntax_error"
    assert said in caught.value.message
