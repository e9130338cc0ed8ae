"""Two agents and a person in one task: a planner, a builder, and someone who wants a shed with a window.

python examples/agents.py

The agents are two answers that stream at the same time, asked for by the official client. They talk by outside
interrupts, put into each other's running answer by their tool `tell`; the person interrupts the planner in
mid-answer. Proxy, HTTP, tools, interrupts and their timing are real. The model is simulated: it can't think, so a cheat
sheet behind each message (`CHEAT_SHEETS`, not shown) says which calls to write and which results they need.

Real models get the same messages without cheat sheets, and find their own way:

OPENAI_API_KEY=... python examples/agents.py --base-url https://api.openai.com/v1 --model gpt-4o

The address may be that of any server with OpenAI's API, an asynclm proxy that runs already included. The agents' tools
need to know both runs, so the agents always have a proxy of their own, in this process, in front of that one.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from typing import Literal

import aiohttp
import openai
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.tools import tool
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.demo.loopback import first_of, proxy, timeline_of

Agent = Literal["planner", "builder"]
OTHER: dict[Agent, Agent] = {"planner": "builder", "builder": "planner"}
COLOURS = {"person": "magenta", "planner": "cyan", "builder": "yellow"}
PRICES = {"wall": 120, "door": 90, "window": 75}

ROLES = {
    "planner": "You plan. The builder, another agent, orders parts: tell it what you need. If the user wants more, "
    "tell it that, too. Wait for the builder's word that all is ordered, then look at the bill.",
    "builder": "You order parts for the planner, another agent. Wait for its word, order what it wants, wait for what "
    "it wants next. Tell it when all is ordered.",
}
WISH = "I'd like a garden shed. Please plan it with the builder, and tell me what it costs."
START = "The planner is about to speak to you."
ALSO = "Also, I want a window!"
BRIEF = "Please order four walls and a door."
BUDGET = "The budget is 700 euros. No need to answer."
EXTRA = "And a window, once you have a moment."
REPORT = "All of it is ordered."


def telling(to: Agent, text: str, scheduling: str = "interrupt") -> str:
    return f"tell(to={json.dumps(to)}, text={json.dumps(text)}, scheduling={json.dumps(scheduling)})"


# What the simulated model does about each message. Of the calls that are ready it writes the longest one first.
CHEAT_SHEETS = {
    WISH: [
        Task(
            say="A shed, then. It stands on flat ground behind the house, two metres by three, with the door to the "
            "south. That makes four walls and a door, all of wood, painted green like the fence. A flat roof comes "
            "with the walls. I'll ask the builder for that.\n",
            calls=(
                Node("brief", telling("builder", BRIEF), estimate_ms=2),
                Node("budget", telling("builder", BUDGET, "silent"), estimate_ms=1),
                Node("word", 'wait_for(agent="builder")', after=("brief", "budget"), estimate_ms=1),
            ),
            answer="",
            quote=False,
        )
    ],
    ALSO: [
        Task(
            say="A window, too: the builder shall know.\n",
            calls=(Node("extra", telling("builder", EXTRA, "when_idle"), after=("brief", "budget"), estimate_ms=2),),
            answer="",
            quote=False,
        )
    ],
    START: [Task(calls=(Node("first", 'wait_for(agent="planner")'),), answer="", quote=False)],
    BRIEF: [
        Task(
            say="Four walls and a door. Let me see what that takes: sixteen posts, a hundred and twenty boards, two "
            "hinges, a lock, and some four hundred screws. The walls come in one piece each, so that they can be put "
            "up in a day. The door is the heaviest part, and comes by itself. I'll order both right away.\n",
            calls=(
                Node("walls", 'order(part="wall", count=4)'),
                Node("door", 'order(part="door", count=1)'),
            ),
            answer="This is on its way:",
        ),
        Task(calls=(Node("next", 'wait_for(agent="planner")', after=("walls", "door")),), answer="", quote=False),
    ],
    BUDGET: [Task(answer="It stays within the 700 euros.")],
    EXTRA: [
        Task(
            say="A window as well, then.\n",
            calls=(Node("window", 'order(part="window", count=1)'),),
            answer="And so is this:",
        ),
        Task(
            calls=(Node("report", telling("planner", REPORT), after=("walls", "door", "window")),),
            answer="",
            quote=False,
        ),
    ],
    REPORT: [
        Task(say="The builder is done.\n", calls=(Node("total", "bill()"),), answer="Your shed, and what it costs:")
    ],
}


class Meeting:
    """The agents' answers, the tools they share, and what is shown of it all."""

    def __init__(self, model: str, policy: str, *, scripted: bool) -> None:
        self.client: openai.AsyncOpenAI  # there once the proxy is up
        self.model = model
        self.policy = policy
        self.scripted = scripted
        self.console = Console(soft_wrap=True, highlight=False)
        self.began = time.monotonic()
        self.lines = {"planner": "", "builder": ""}  # begun, not shown yet
        self.runs: dict[Agent, asyncio.Future[str]] = {agent: asyncio.Future() for agent in OTHER}
        self.words: dict[Agent, asyncio.Queue[bool]] = {agent: asyncio.Queue() for agent in OTHER}  # by speaker
        self.under_way = asyncio.Event()  # the planner has something to say
        self.ordered: Counter[str] = Counter()

    # what the agents can do

    async def tell(
        self, to: Agent, text: str, scheduling: Literal["interrupt", "when_idle", "silent"] = "interrupt"
    ) -> str:
        """Say something to the other agent, which hears it while it writes.

        Args:
            to: Who shall hear it.
            text: What to say.
            scheduling: At once, when it has nothing else to do, or just for its information.
        """
        await self.interrupt(OTHER[to], to, text, scheduling)
        if scheduling != "silent":
            self.words[OTHER[to]].put_nowait(True)
        return "told"

    @tool(timeout_s=120, effect="read_only")
    async def wait_for(self, agent: Agent) -> str:
        """Wait until the other agent has said something more to you. What it said comes as an interrupt of its own."""
        if await self.words[agent].get():
            return f"the {agent} has spoken"
        self.words[agent].put_nowait(False)
        raise RuntimeError(f"the {agent} has finished and says nothing more")

    async def order(self, part: Literal["wall", "door", "window"], count: int) -> str:
        """Order parts for the shed."""
        await asyncio.sleep(0.3)  # a real tool would ask a shop here
        self.ordered[part] += count
        return f"{count * PRICES[part]} euros"

    @tool(effect="read_only")
    async def bill(self) -> str:
        """What was ordered so far, and what it costs."""
        parts = ", ".join(f"{count} x {part}" for part, count in self.ordered.items())
        return f"{sum(count * PRICES[part] for part, count in self.ordered.items())} euros: {parts}"

    # how they get to speak

    async def interrupt(self, sender: str, to: Agent, text: str, scheduling: str = "interrupt") -> None:
        """Put a message into an agent's running answer."""
        run = await self.runs[to]
        self.flush(to, "…")
        self.show(f"{sender} → {to}", text, f" ({scheduling})")
        source = "user" if sender == "person" else f"agent_{sender}"
        said = {"text": self.with_cheat_sheet(text), "source": source, "scheduling": scheduling}
        await self.client.post(f"/asynclm/runs/{run}/interrupts", body=said, cast_to=object)

    async def answer(self, agent: Agent, question: str) -> None:
        """Let an agent answer, and show its words as they come."""
        response = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[
                {"role": "system", "content": ROLES[agent]},
                {"role": "user", "content": self.with_cheat_sheet(question)},
            ],
            stream=True,
            extra_headers={"x-asynclm-policy": self.policy},
        )
        self.runs[agent].set_result(response.headers["x-asynclm-run-id"])
        written = 0
        async for chunk in response.parse():
            for choice in chunk.choices:
                self.hear(agent, choice.delta.content or "")
                written += len(choice.delta.content or "")
            if agent == "planner" and written > 60:
                self.under_way.set()
        self.flush(agent)
        self.words[agent].put_nowait(False)
        if agent == "planner":
            self.under_way.set()

    async def person(self) -> None:
        """Interrupt the planner in mid-answer."""
        await self.under_way.wait()
        try:
            await self.interrupt("person", "planner", ALSO)
        except openai.ConflictError:
            self.show("person", "Too late, the planner has finished.")

    def with_cheat_sheet(self, text: str) -> str:
        return " ".join([text, *map(encode_task, CHEAT_SHEETS.get(text, []))]) if self.scripted else text

    # what is shown

    def hear(self, agent: Agent, text: str) -> None:
        """Show each sentence as it is complete."""
        *complete, begun = re.split(r"(?<=[.!?]) |\n", self.lines[agent] + text)
        if begun.endswith((".", "!", "?")):
            complete, begun = [*complete, begun], ""
        for line in filter(str.strip, complete):
            self.show(agent, line)
        self.lines[agent] = begun

    def flush(self, agent: Agent, end: str = "") -> None:
        """Show what was begun."""
        line, self.lines[agent] = self.lines[agent].strip(), ""
        if line:
            self.show(agent, line + end)

    def show(self, who: str, text: str, how: str = "") -> None:
        style = COLOURS[who.split()[0]]
        when = f"{time.monotonic() - self.began:5.2f} s  "
        self.console.print(
            Text.assemble((when, "dim"), (f"{who:<18} ", style), (text.strip(), "bold" * bool(how)), how)
        )

    async def summary(self) -> Table:
        """Who was told what, and when: read from the timelines of the two runs."""
        table = Table("from", "to", "what", "scheduling", "arrived", "told")
        for agent, run in self.runs.items():
            timeline = await timeline_of(str(self.client.base_url).rstrip("/"), await run)
            for said in [entry for entry in timeline.entries if entry.kind == "outside"]:
                words = said.data["text"].partition(" <task>")[0]
                told = [e.t for e in timeline.entries if e.kind == "interrupt" and words in e.data["text"]]
                sender = said.data["source"].removeprefix("agent_").replace("user", "person")
                when = f"{told[0] - said.t:.2f} s later" if told else "never"
                table.add_row(sender, agent, words, said.data["scheduling"], f"at {said.t:.2f} s", when)
        return table


async def meet(args: argparse.Namespace) -> None:
    scripted = args.base_url is None
    if scripted:
        # Takes interrupts like a hosted model: its stream is stopped, and goes on in a new request.
        upstream = Upstream(kind="simulated", inject=False, tpot_ms=args.tpot_ms)
    else:
        # If that is an asynclm proxy: the tools are here, not there.
        upstream = Upstream(base_url=args.base_url, headers={"x-asynclm-policy": "off"})
    config = Config(upstreams={"main": upstream}, models={"*": Model(upstream="main")})
    meeting = Meeting(args.model, args.policy, scripted=scripted)
    toolbox = Toolbox([PythonTool(each) for each in (meeting.tell, meeting.wait_for, meeting.order, meeting.bill)])
    key = os.environ.get("OPENAI_API_KEY", "none")
    async with proxy(config, toolbox) as url, openai.AsyncOpenAI(base_url=url, api_key=key) as meeting.client:
        meeting.show("person", WISH)
        async with asyncio.TaskGroup() as group:
            group.create_task(meeting.answer("builder", START))
            group.create_task(meeting.answer("planner", WISH))
            group.create_task(meeting.person())
        meeting.console.print(await meeting.summary())


def main() -> int:
    parser = argparse.ArgumentParser(description="Two agents and a person in one task.")
    parser.add_argument("--base-url", metavar="URL", help="a server with OpenAI's API, instead of the simulated model")
    parser.add_argument("--model", default="simulated", help="the model's name there")
    parser.add_argument("--policy", default="auto", help="sync, parallel, immediate, coalesce, fork or auto")
    parser.add_argument(
        "--tpot-ms", type=float, default=15, metavar="MS", help="time per token of the simulated model (default 15)"
    )
    args = parser.parse_args()
    failed = False
    try:
        asyncio.run(meet(args))
    except* (openai.OpenAIError, aiohttp.ClientError) as errors:
        print(f"agents.py: {first_of(errors)}", file=sys.stderr)
        failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
