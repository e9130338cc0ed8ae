"""What a client does with a case: it asks for all of it at once, or for a chain at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from asynclm.bench.methods import Method
from asynclm.bench.workloads import Case
from asynclm.bench.workloads.checks import Ran


class Said(NamedTuple):
    """An outside interrupt: what is said, and how long after the request (s)."""

    after_s: float
    text: str


class Client(Protocol):
    """Whoever sends requests to a proxy."""

    async def ask(self, prompt: str, interrupts: Sequence[Said] = ()) -> Ran:
        """Send a chat request, say the rest while it is answered, and wait for the answer's end.

        What is due only after the end, or is not taken any more, is not said.
        """
        ...


Scenario = Callable[[Client, Case, Method], Awaitable[list[Ran]]]


async def at_once(client: Client, case: Case, method: Method) -> list[Ran]:
    """One request for the whole case."""
    return [await client.ask(case.prompt(order=method.order))]


async def one_by_one(client: Client, case: Case, method: Method, gap_s: float) -> list[Ran]:
    """Each chain is a task that arrives `gap_s` after the one before: as an interrupt of the first one's run.

    Without interrupts, or when that run has ended, a task is a request of its own, sent when the answer before it has
    come.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    tasks = [Said(number * gap_s, case.prompt([number], method.order)) for number in range(len(case.chains))]
    ran = [await client.ask(tasks[0].text, tasks[1:] if method.listens else ())]
    for task in tasks[1:]:
        if task.text not in ran[0].said:
            await asyncio.sleep(max(0.0, began + task.after_s - clock()))
            ran.append(await client.ask(task.text))
    return ran
