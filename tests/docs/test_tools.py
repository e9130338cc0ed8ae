"""docs/tools.md: its tool adapter works."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, fenced

from asynclm.adapters.tools.sources import Sources
from asynclm.cml.tools import CallError, Effect, Invocation


async def test_the_tool_adapter_shown(tmp_path: Path) -> None:
    (code,) = fenced(ROOT / "docs" / "tools.md", "python")
    names: dict[str, Any] = {}
    exec(code.replace("asyncio.sleep(1)", "asyncio.sleep(0.01)"), names)
    (tmp_path / "todo.txt").write_text("one\ntwo\n")
    sources = Sources([names["Notes"](tmp_path)])
    try:
        await sources.open()
        spec, arguments = sources.toolbox.check(Invocation("read_todo", (), {"lines": 1}))
        assert spec.effect is Effect.READ_ONLY
        assert await sources.toolbox["read_todo"].run(arguments) == ["one"]
        assert await sources.toolbox["read_todo"].run({}) == ["one", "two"]
        (tmp_path / "more.txt").write_text("")
        async with asyncio.timeout(10):
            while "read_more" not in sources.toolbox:
                await asyncio.sleep(0.01)
        old = sources.toolbox["read_todo"]
        (tmp_path / "todo.txt").unlink()
        with pytest.raises(CallError, match="the note can't be read: No such file or directory"):
            await old.run({})
    finally:
        await sources.aclose()


async def test_it_can_be_closed_without_being_opened(tmp_path: Path) -> None:
    (code,) = fenced(ROOT / "docs" / "tools.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    await names["Notes"](tmp_path).aclose()
