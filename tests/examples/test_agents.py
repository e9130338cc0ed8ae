"""The example with two agents and a person: who says what when, and that it counts."""

import asyncio
import re
import sys
from typing import Any

import pytest
from commands import ROOT, environment, output_of
from harness import proxy_for
from upstream import Answer, ScriptedUpstream

SCRIPT = "examples/agents.py"
WIDE = {"COLUMNS": "200"}  # so that no table wraps
TOTAL = 'total = "645 euros: 4 x wall, 1 x door, 1 x window"'


def said(output: str) -> list[tuple[str, str]]:
    """The transcript: who, and what."""
    lines = re.findall(r"^ *[\d.]+ s  (person|planner|builder)((?: → \w+)?) +(.*)$", output, re.MULTILINE)
    return [(who + to, text) for who, to, text in lines]


def told(output: str) -> set[tuple[str, ...]]:
    """The table of what was told to whom: from, to, what, scheduling, when."""
    rows = [re.split(r" *│ *", line.strip("│ ")) for line in output.splitlines() if line.startswith("│")]
    return {(*row[:4], row[5].removeprefix(row[5].split(" later")[0])) for row in rows}


@pytest.mark.parametrize("policy", ["auto", "immediate", "sync"])
def test_what_they_say_to_each_other_is_what_comes_out(policy: str) -> None:
    output = output_of(sys.executable, SCRIPT, "--tpot-ms", "3", "--policy", policy, cwd=ROOT, **WIDE)
    lines = said(output)

    def at(who: str, text: str) -> int:
        (found,) = [n for n, line in enumerate(lines) if line[0] == who and line[1].startswith(text)]
        return found

    # The person breaks in, and the planner passes that on.
    assert at("planner", "A shed, then.") < at("person → planner", "Also, I want a window! (interrupt)")
    assert at("person → planner", "Also,") < at("planner", "A window, too") < at("planner → builder", "And a window")
    # The builder acts when it is told, while the planner goes on.
    acts = [n for n, line in enumerate(lines) if line[0] == "builder"]
    assert at("planner → builder", "Please order four walls and a door. (interrupt)") < acts[0]
    assert acts[0] < at("planner → builder", "And a window")
    assert at("planner → builder", "And a window, once you have a moment. (when_idle)") < at("builder", "A window as")
    assert at("builder", "A window as") < at("builder → planner", "All of it is ordered. (interrupt)")
    assert at("builder → planner", "All of it") < at("planner", "The builder is done.")
    # The answers are made of all that.
    assert [line for line in lines if line[0] == "planner"][-1] == ("planner", TOTAL)
    answer = [text for who, text in lines[at("builder", "This is on its way:") :] if who == "builder"]
    assert answer[1:] == [
        'walls = "480 euros"',
        'door = "90 euros"',
        "It stays within the 700 euros.",
        "And so is this:",
        'window = "75 euros"',
    ]
    assert told(output) == {
        ("person", "planner", "Also, I want a window!", "interrupt", " later"),
        ("builder", "planner", "All of it is ordered.", "interrupt", " later"),
        ("planner", "builder", "Please order four walls and a door.", "interrupt", " later"),
        ("planner", "builder", "The budget is 700 euros. No need to answer.", "silent", " later"),
        ("planner", "builder", "And a window, once you have a moment.", "when_idle", " later"),
    }


def model(body: dict[str, Any]) -> Answer:
    """What a real model may do with the plain messages, cut off as it is by the person somewhere in its first words."""
    role, *turns = [message["content"] for message in body["messages"] if message["role"] != "user"]
    heard = "\n".join(message["content"] for message in body["messages"] if message["role"] == "user")
    wrote = "\n".join(turns)
    assert "<task>" not in heard
    for needs, text, block in PLANNER if "You plan." in role else BUILDER:
        if all(f"[INTR] {id} " in heard for id in needs) and (block or text) not in wrote:
            return Answer(*re.split(r"(?<= )", text), f"{block}\n[TRAP][END]" if block else "")
    return Answer("[TRAP][END]")


# Each step: the interrupts that it needs, and what the model writes then, text and a call.
PLANNER = [
    (["user", "c"], "It costs what the bill says.", ""),
    (["user", "agent_builder"], "", "[CALL] c [HEAD] bill() [END]"),
    (["a"], "", '[CALL] b [HEAD] wait_for(agent="builder") [END]'),
    (
        [],
        "Four walls then, and nothing else that I can think of just now. ",
        '[CALL] a [HEAD] tell(to="builder", text="Four walls, please.") [END]',
    ),
]
BUILDER = [
    (["c"], "Good bye.", ""),
    (["b"], "", '[CALL] c [HEAD] tell(to="planner", text="Ordered.") [END]'),
    (["agent_planner"], "", '[CALL] b [HEAD] order(part="wall", count=4) [END]'),
    ([], "", '[CALL] a [HEAD] wait_for(agent="planner") [END]'),
]


def add(x: int) -> int:
    """A tool of the proxy that runs already: of no use here."""
    return x + 1


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(SCRIPT, *arguments),
        cwd=ROOT,
        env=environment(OPENAI_API_KEY="sk-x", **WIDE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode(), errors.decode()


async def test_another_model_gets_plain_messages_through_a_proxy_that_runs_already() -> None:
    async with ScriptedUpstream(model) as upstream, proxy_for(upstream.url, add) as proxy:
        status, output, errors = await run("--base-url", proxy.url, "--model", "m")
        assert (status, errors) == (0, "")
        assert proxy.server.registry.summaries() == []  # it only passed things through
        assert {body["model"] for body in upstream.requests} == {"m"}
        assert upstream.headers[0]["Authorization"] == "Bearer sk-x"
    lines = said(output)
    assert ("planner → builder", "Four walls, please. (interrupt)") in lines
    assert ("builder → planner", "Ordered. (interrupt)") in lines
    assert ("builder", "Good bye.") in lines
    assert ("planner", "It costs what the bill says.") in lines
    assert ("person", "planner", "Also, I want a window!", "interrupt", " later") in told(output)


async def test_an_agent_that_fails_ends_it_all_with_one_line() -> None:
    def only_the_planner(body: dict[str, Any]) -> Answer:
        if "You plan." in body["messages"][0]["content"]:
            return Answer('[CALL] a [HEAD] wait_for(agent="builder") [END]', "[TRAP][END]")
        return Answer(status=401, message="who are you?")

    async with ScriptedUpstream(only_the_planner) as upstream:
        status, _, errors = await run("--base-url", upstream.url, "--model", "m")
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith("agents.py: AuthenticationError: ")
    assert "who are you?" in errors
