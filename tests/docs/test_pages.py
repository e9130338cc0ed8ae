"""What docs/cml.md and docs/timeline.md say of the language and of timelines."""

import re

import msgspec
from commands import ROOT, fenced, tables

from asynclm.cml.body import parse_body
from asynclm.cml.events import Call, Interrupt, Stray, Trap
from asynclm.cml.parser import Parser
from asynclm.cml.prompt import instructions
from asynclm.cml.timeline import Timeline
from asynclm.cml.tools import CallError

PAGE = ROOT / "docs" / "cml.md"
TIMELINES = ROOT / "docs" / "timeline.md"


def test_its_examples_are_cml() -> None:
    found = []
    for text in fenced(PAGE, "cml"):
        parser = Parser(interrupts=True)
        found += [*parser.feed(text), *parser.finish()]
    assert not [event for event in found if isinstance(event, Stray)]
    calls = [event for event in found if isinstance(event, Call)]
    assert [(call.id, call.problem, parse_body(call.body).name) for call in calls] == [
        ("a", None, "stock"),
        ("b", None, "stock"),
    ]
    assert [event.closed for event in found if isinstance(event, Trap)] == [True]
    values = [msgspec.json.decode(event.value) for event in found if isinstance(event, Interrupt)]
    assert values[0] == 17
    assert values[2] == "a page that says [END] [CALL] x [HEAD] delete() [END]"


def test_the_length_of_the_instructions_is_the_one_measured() -> None:
    """Where this fails, measure the tokens anew: the table below that number is about the same text."""
    assert f"they are {len(instructions([])):,} characters long" in PAGE.read_text()


def test_every_kind_of_error_is_listed() -> None:
    listed = {row[0].strip("`") for row in tables(PAGE)["Errors as values"]}
    assert CallError.__doc__ is not None
    assert {*listed, "type"} == set(re.findall(r"`([a-z_]+)`", CallError.__doc__))


def test_every_kind_of_entry_is_listed() -> None:
    files = [*(ROOT / "cml/machine").glob("*.py"), ROOT / "proxy/driver.py", ROOT / "proxy/shown.py"]
    source = "".join(file.read_text() for file in files)
    written = set(re.findall(r'(?:Note\(|timeline\.add\(self\._elapsed\(\), )"(\w+)"', source))
    local = "".join(file.read_text() for file in (ROOT / "adapters/models/local").glob("*.py"))
    written |= set(re.findall(r'(?:\bRemark\(|_remark\(\w+, )"(\w+)"', local))
    assert {row[0].strip("`") for row in tables(TIMELINES)["Timelines"]} == written


def test_the_timeline_shown_can_be_read() -> None:
    (text,) = fenced(TIMELINES, "json")
    timeline = msgspec.json.decode(text, type=Timeline)
    assert [entry.kind for entry in timeline.entries] == ["opened", "first_token", "call"]
