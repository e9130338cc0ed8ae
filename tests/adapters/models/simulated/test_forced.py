"""The ideal model's output as masks: what comes next when interrupts arrive at a trap's beginning, and inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("numpy")

from asynclm.adapters.models.protocol import Request
from asynclm.adapters.models.simulated.forced import Forced
from asynclm.adapters.models.simulated.task import Node, Task, encode_task

END = 256


class Letters:
    """A token a byte."""

    pieces = [bytes([byte]) for byte in range(256)] + [b""]
    ends = frozenset({END})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def chat(self, messages: Sequence[dict[str, Any]], answer: str) -> list[int]:
        raise NotImplementedError


def forced() -> Forced:
    task = encode_task(Task((Node("a", "f(x=1)"),), answer="Done.", quote=False))
    return Forced(Request(model="m", messages=[{"role": "user", "content": task}]), Letters())


def write(guide: Forced, count: int | None = None) -> str:
    """So many tokens; all up to the end if not said."""
    found = bytearray()
    while count is None or len(found) < count:
        mask = guide.mask()
        (token,) = [id for id in range(END + 1) if mask[id // 32] >> (id % 32) & 1]
        if token == END:
            break
        guide.take(token)
        found.append(token)
    return found.decode()


CALL = "[CALL] a [HEAD] f(x=1) [END]"
RESULT = b"\n[INTR] a [HEAD] 1 [END]\n"


@pytest.mark.parametrize("begun", ["", "\n"])
def test_a_trap_that_was_not_begun_is_not_written_once_its_result_is_there(begun: str) -> None:
    guide = forced()
    assert write(guide, len(CALL) + len(begun)) == CALL + begun
    if begun:
        assert guide.step is not None
        assert guide.step.kind == "trap"
    guide.told(RESULT)
    assert write(guide) == "\nDone."


def test_a_trap_that_was_begun_is_written_to_its_end() -> None:
    guide = forced()
    assert write(guide, len(CALL) + 2) == f"{CALL}\n["
    guide.told(RESULT)
    assert write(guide) == "TRAP][END]\nDone."
