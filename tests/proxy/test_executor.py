"""The executor: what comes of calls, whose turn it is, and what cancellation leaves behind (nothing)."""

import asyncio
import contextvars
import datetime as dt
import json
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, ToolSpec
from asynclm.proxy.executor import Executor, Result

CANCELLED = "not run: the server is shutting down"


class Gate:
    """A tool whose calls say that they began, and end when they are let go."""

    def __init__(self, name: str = "gate", **spec: Any) -> None:
        self.spec = ToolSpec(name=name, **spec)
        self.running: list[Any] = []
        self.cancelled: list[Any] = []
        self.changed = asyncio.Event()
        self._go: dict[Any, asyncio.Event] = {}

    def go(self, *keys: Any) -> None:
        for key in keys:
            self._go.setdefault(key, asyncio.Event()).set()

    async def has(self, count: int) -> None:
        while len(self.running) < count:
            self.changed.clear()
            await self.changed.wait()

    async def run(self, arguments: dict[str, Any]) -> object:
        key = arguments["key"]
        self.running.append(key)
        self.changed.set()
        try:
            await self._go.setdefault(key, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        return key


def executor(*tools: Any, **limits: Any) -> Executor:
    return Executor(Toolbox(tools), **limits)


def start(executor: Executor, tool: Any, key: Any = None, **kwargs: Any) -> asyncio.Task[Result]:
    return asyncio.create_task(executor.execute(tool.spec, {"key": key}, **kwargs))


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def call(function: Any, limits: dict[str, Any] | None = None, /, **arguments: Any) -> Result:
    tool = PythonTool(function)
    return await executor(tool, **(limits or {})).execute(tool.spec, arguments)


def error(result: Result) -> tuple[str, str]:
    assert not result.ok
    assert list(json.loads(result.value)) == ["error"]
    found = json.loads(result.value)["error"]
    return found["type"], found["message"]


class TestOutcomes:
    async def test_a_value(self):
        async def on_loop(a: int, when: dt.date):
            return {"sum": a + 1, "when": when}

        def in_thread(a: int):
            return [a, None, "ü"]

        result = await call(on_loop, a=1, when="2024-05-01")
        assert (result.ok, result.value) == (True, '{"sum":2,"when":"2024-05-01"}')
        assert (await call(in_thread, a=1)).value == '[1,null,"ü"]'

    async def test_an_exception(self):
        async def fail():
            raise LookupError("no such [END] city")

        def fail_in_thread():
            raise ValueError

        class MuteError(Exception):
            def __str__(self):
                raise RuntimeError("can't even say")

        def mute():
            raise MuteError

        def long():
            raise ValueError("x" * 100_000)

        assert error(await call(fail)) == ("tool_error", "LookupError: no such [END] city")
        assert error(await call(fail_in_thread)) == ("tool_error", "ValueError")
        assert error(await call(mute)) == ("tool_error", "MuteError")
        kind, message = error(await call(long))
        assert (kind, len(message)) == ("tool_error", 1003)

    async def test_an_error_the_tool_words_itself(self):
        async def fail():
            raise CallError("invalid_arguments", "no such date")

        assert error(await call(fail)) == ("invalid_arguments", "no such date")

    async def test_a_message_that_has_no_utf8_form(self):
        def fail():
            raise ValueError("\ud800")

        assert error(await call(fail)) == ("tool_error", "ValueError: ?")

    async def test_a_tool_that_tries_to_end_the_process(self):
        async def leave():
            sys.exit(3)

        def leave_in_thread():
            sys.exit(3)

        assert error(await call(leave)) == (
            "tool_error",
            "RuntimeError: the tool tried to end the process (SystemExit: 3)",
        )
        assert error(await call(leave_in_thread)) == ("tool_error", "RuntimeError: the function raised SystemExit: 3")

    @pytest.mark.parametrize("in_thread", [False, True])
    @pytest.mark.parametrize("raised", [KeyboardInterrupt, GeneratorExit, BaseException])
    async def test_a_tool_that_raises_what_is_no_exception(self, raised, in_thread):
        async def leave():
            raise raised

        def leave_in_thread():
            raise raised

        kind, message = error(await call(leave_in_thread if in_thread else leave))
        assert (kind, raised.__name__ in message) == ("tool_error", True)

    async def test_a_tool_that_cancels_itself(self):
        async def give_up():
            raise asyncio.CancelledError

        assert error(await call(give_up)) == ("cancelled", "give_up() was cancelled")

    async def test_a_result_without_a_json_form(self):
        async def thing():
            return {"a": [object()]}

        async def circle():
            ring: list[Any] = []
            ring.append(ring)
            return ring

        async def surrogate():
            return "\ud800"

        for function in (thing, circle, surrogate):
            kind, message = error(await call(function))
            assert kind == "unserializable_result"
            assert message.startswith(f"{function.__name__}() ran, but its result has no JSON form: ")

    async def test_a_result_that_is_too_long_is_cut(self):
        async def long():
            return "ü" * 1000

        result = await call(long, {"max_result_bytes": 500})
        assert result.ok
        assert len(result.value.encode()) <= 500
        assert json.loads(result.value)["truncated"] is True

    async def test_unknown_tools(self):
        assert error(await executor().execute(ToolSpec(name="f"), {})) == ("unknown_tool", "there is no tool 'f'")

    async def test_context_variables_reach_the_tool(self):
        name = contextvars.ContextVar("name", default="none")
        name.set("mine")

        def seen():
            return name.get()

        assert (await call(seen)).value == '"mine"'

    @pytest.mark.parametrize("limits", [{"max_concurrency": 0}, {"max_result_bytes": 10}])
    def test_bounds_that_leave_no_room(self, limits):
        with pytest.raises(ValueError, match=next(iter(limits))):
            executor(**limits)


@pytest.mark.looptime(start=0)
class TestTime:
    async def test_running_time_is_measured_and_said_when_it_begins(self):
        async def sleep(s: float):
            await asyncio.sleep(s)

        tool = PythonTool(sleep)
        dispatched: list[float] = []
        result = await executor(tool).execute(
            tool.spec, {"s": 2.5}, dispatched=lambda: dispatched.append(asyncio.get_running_loop().time())
        )
        assert (result.ok, result.value, result.ms) == (True, "null", 2500)
        assert dispatched == [0]

    async def test_the_timeout_is_the_tools_or_the_default(self):
        gate, patient = Gate(), Gate("patient", timeout_s=7.5)
        runner = executor(gate, patient, default_timeout_s=3)
        result = await runner.execute(gate.spec, {"key": 1})
        assert error(result) == ("timeout", "gate() did not return within 3 s")
        assert (result.ms, gate.cancelled) == (3000, [1])
        result = await runner.execute(patient.spec, {"key": 1})
        assert error(result) == ("timeout", "patient() did not return within 7.5 s")
        assert result.ms == 7500

    async def test_the_timeout_does_not_count_the_wait_in_the_queue(self):
        gate = Gate(concurrency=1)
        runner = executor(gate, default_timeout_s=3)
        first, second = start(runner, gate, 1), start(runner, gate, 2)
        await gate.has(2)  # after the first has timed out, at 3 s
        assert asyncio.get_running_loop().time() == 3
        await asyncio.sleep(2)
        gate.go(2)
        assert error(await first)[0] == "timeout"
        assert await second == Result(True, "2", 2000)

    async def test_the_queue_has_a_bound_of_its_own(self):
        slow, other = Gate("slow", concurrency=1), Gate("other")
        runner = executor(slow, other, max_concurrency=2, queue_timeout_s=5)
        running = [start(runner, slow, 1), start(runner, other, 1)]
        await settle()
        behind_tool, behind_server = start(runner, slow, 2), start(runner, other, 2)
        result = await behind_tool
        assert error(result) == ("timeout", "not run: slow() got no free slot within 5 s")
        assert result.ms == 0
        assert error(await behind_server) == ("timeout", "not run: other() got no free slot within 5 s")
        assert (slow.running, other.running) == ([1], [1])
        slow.go(1, 3)
        other.go(1)
        await asyncio.gather(*running)
        assert await start(runner, slow, 3) == Result(True, "3", 0)

    async def test_work_that_does_not_stop_keeps_its_tools_slot_only(self, caplog):
        ended = asyncio.Event()

        async def stubborn():
            while not ended.is_set():
                try:
                    await ended.wait()
                except asyncio.CancelledError:
                    continue
            return 1

        async def nimble():
            return 2

        tool = PythonTool(stubborn, Options(concurrency=1))
        other = PythonTool(nimble)
        runner = executor(tool, other, max_concurrency=1, default_timeout_s=1, queue_timeout_s=4)
        assert error(await runner.execute(tool.spec, {}))[0] == "timeout"
        assert "stubborn did not stop at its timeout of 1 s and keeps one of its 1 slots" in caplog.text
        assert (await runner.execute(other.spec, {})).value == "2"
        assert error(await runner.execute(tool.spec, {})) == (
            "timeout",
            "not run: stubborn() got no free slot within 4 s; "
            "1 of its 1 are held by earlier calls that were given up but have not ended",
        )
        ended.set()
        await settle()
        assert (await runner.execute(tool.spec, {})).value == "1"
        ended.clear()
        assert error(await runner.execute(tool.spec, {}))[0] == "timeout"
        assert "; 1 of its 1 are held" in error(await runner.execute(tool.spec, {}))[1]
        ended.set()
        await settle()

    async def test_a_thread_that_timed_out_keeps_its_tools_slot_too(self):
        go, running = threading.Event(), []

        def block():
            running.append(1)
            go.wait(10)

        tool = PythonTool(block, Options(concurrency=1))
        runner = executor(tool, default_timeout_s=1, queue_timeout_s=4)
        assert error(await runner.execute(tool.spec, {}))[0] == "timeout"
        assert "1 of its 1 are held" in error(await runner.execute(tool.spec, {}))[1]
        assert running == [1]
        go.set()

    async def test_closing_gives_a_grace_time(self):
        async def sleep(s: float):
            await asyncio.sleep(s)
            return s

        tool = PythonTool(sleep)
        runner = executor(tool)
        quick, slow = (asyncio.create_task(runner.execute(tool.spec, {"s": s})) for s in (3, 30))
        runner.detach(quick)
        runner.detach(slow)
        await settle()
        await runner.aclose(5)
        assert asyncio.get_running_loop().time() == 5
        assert await quick == Result(True, "3.0", 3000)
        assert slow.cancelled()

    async def test_closing_does_not_wait_longer_than_it_must(self):
        async def sleep(s: float):
            await asyncio.sleep(s)

        tool = PythonTool(sleep)
        runner = executor(tool)
        runner.detach(asyncio.create_task(runner.execute(tool.spec, {"s": 3})))
        await settle()
        await runner.aclose(3600)
        assert asyncio.get_running_loop().time() == 3
        await executor(tool).aclose(3600)
        assert asyncio.get_running_loop().time() == 3


class TestTurns:
    async def test_the_server_runs_so_many_at_once_in_the_order_they_came(self):
        a, b = Gate("a"), Gate("b")
        runner = executor(a, b, max_concurrency=3)
        calls = [start(runner, (a, b)[n % 2], n) for n in range(8)]
        await settle()
        assert a.running + b.running == [0, 2, 1]
        order = []
        for n in range(8):
            (a, b)[n % 2].go(n)
            await calls[n]
            await settle()
            order.append(len(a.running) + len(b.running))
        assert order == [4, 5, 6, 7, 8, 8, 8, 8]
        assert (a.running, b.running) == ([0, 2, 4, 6], [1, 3, 5, 7])

    async def test_a_tool_waits_for_itself_without_holding_up_others(self):
        one, many = Gate("one", concurrency=1), Gate("many")
        runner = executor(one, many, max_concurrency=3)
        calls = [start(runner, one, n) for n in range(5)] + [start(runner, many, n) for n in range(2)]
        await settle()
        assert (one.running, many.running) == ([0], [0, 1])
        one.go(*range(5))
        many.go(*range(2))
        assert [(await task).value for task in calls] == ["0", "1", "2", "3", "4", "0", "1"]
        assert one.running == [0, 1, 2, 3, 4]

    async def test_dispatched_is_told_when_it_starts_and_not_before(self):
        gate = Gate(concurrency=1)
        runner = executor(gate)
        told: list[int] = []
        calls = [start(runner, gate, n, dispatched=lambda n=n: told.append(n)) for n in range(2)]
        await settle()
        assert told == [0]
        gate.go(0)
        await calls[0]
        await settle()
        assert told == [0, 1]
        gate.go(1)
        await calls[1]


class TestCancellation:
    async def test_the_work_is_cancelled_at_once(self):
        gate = Gate()
        task = start(executor(gate), gate, 1)
        await gate.has(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert gate.cancelled == [1]

    async def test_it_does_not_wait_for_a_thread_and_one_at_a_time_holds_even_so(self):
        go, running, most = threading.Event(), [], []
        begun = threading.Semaphore(0)

        def block(key: int):
            running.append(key)
            most.append(len(running))
            begun.release()
            go.wait(10)
            running.remove(key)
            return key

        tool = PythonTool(block, Options(concurrency=1))
        runner = executor(tool)
        first = start(runner, tool, 1)
        await asyncio.to_thread(begun.acquire, timeout=10)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert running == [1]
        second = start(runner, tool, 2)
        await settle()
        assert not begun.acquire(blocking=False)
        go.set()
        assert (await second).value == "2"
        assert most == [1, 1]

    @pytest.mark.parametrize("steps", range(12))
    @pytest.mark.parametrize("state", ["running", "behind_tool", "behind_server", "woken"])
    async def test_at_every_await_it_leaves_no_slot_behind(self, state, steps):
        gate, other = Gate("gate", concurrency=1), Gate("other")
        runner = executor(gate, other, max_concurrency=2)
        holders = []
        if state == "behind_tool":
            holders = [start(runner, gate, "h")]
        elif state == "behind_server":
            holders = [start(runner, other, "h1"), start(runner, other, "h2")]
        elif state == "woken":  # cancelled while a slot is on its way to it
            holders = [start(runner, gate, "h")]
        await settle()
        if state == "running":
            gate.go("k")
        task = start(runner, gate, "k")
        if state == "woken":
            await settle()
            gate.go("h", "k")
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        gate.go("h")
        other.go("h1", "h2")
        await asyncio.gather(*holders)
        await settle()
        # Every slot is there again: of the tool exactly one, of the server exactly two.
        calls = [start(runner, gate, 1), start(runner, gate, 2), start(runner, other, 3), start(runner, other, 4)]
        gate.running.clear()
        other.running.clear()
        await settle()
        assert (gate.running, other.running) == ([1], [3])
        gate.go(1, 2)
        other.go(3, 4)
        assert [(await c).value for c in calls] == ["1", "2", "3", "4"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_many_cancelled_calls_leave_nothing(self):
        gate = Gate(concurrency=3)
        runner = executor(gate, max_concurrency=5)
        for _ in range(50):
            tasks = [start(runner, gate, 0) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::-1]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gate.go(0)
        assert (await start(runner, gate, 0)).ok


class TestClosing:
    async def test_no_more_calls_and_what_waits_is_not_run(self):
        gate = Gate(concurrency=1)
        runner = executor(gate)
        running, waiting = start(runner, gate, 1), start(runner, gate, 2)
        await gate.has(1)
        closing = asyncio.create_task(runner.aclose(10))
        await settle()
        assert error(await start(runner, gate, 3)) == ("cancelled", CANCELLED)
        gate.go(1)
        assert (await running).value == "1"
        assert error(await waiting) == ("cancelled", CANCELLED)
        await closing
        assert gate.running == [1]

    async def test_what_does_not_end_in_time_is_cancelled(self):
        gate = Gate()
        runner = executor(gate)
        task = start(runner, gate, 1)
        await gate.has(1)
        await runner.aclose()
        assert error(await task) == ("cancelled", "gate() was cancelled")
        assert gate.cancelled == [1]

    async def test_a_detached_call_outlives_whoever_started_it(self):
        gate = Gate()
        runner = executor(gate)

        async def run() -> None:
            runner.detach(start(runner, gate, 1))

        await asyncio.create_task(run())
        await gate.has(1)
        gate.go(1)
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await runner.aclose()

    async def test_detached_while_closing_is_cancelled(self):
        gate = Gate()
        runner = executor(gate)
        await runner.aclose()
        task = asyncio.create_task(gate.run({"key": 1}))
        runner.detach(task)
        await asyncio.wait((task,))
        assert task.cancelled()

    async def test_a_detached_task_that_fails_is_logged(self, caplog):
        runner = executor()

        async def fail():
            raise ValueError("oh")

        runner.detach(asyncio.create_task(fail()))
        await settle()
        assert "a detached call failed" in caplog.text
        assert "ValueError: oh" in caplog.text

    @pytest.mark.looptime
    async def test_a_hanging_thread_is_left_behind(self, caplog):
        go = threading.Event()
        tool = PythonTool(lambda: go.wait(10), Options(name="hang"))
        runner = executor(tool)
        task = asyncio.create_task(runner.execute(tool.spec, {}))
        await settle()
        await runner.aclose()
        assert error(await task) == ("cancelled", "hang() was cancelled")
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
            "1 calls can't be stopped and are left behind: tool hang"
        ]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        go.set()

    def test_a_hanging_thread_does_not_keep_the_process_alive(self):
        code = """
import asyncio, threading
from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.proxy.executor import Executor
async def main():
    tool = PythonTool(threading.Event().wait, Options(name="hang", timeout_s=0.01))
    executor = Executor(Toolbox([tool]))
    print((await executor.execute(tool.spec, {})).value)
asyncio.run(main())
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert '"type":"timeout"' in done.stdout


class TestToolsThatComeAndGo:
    async def test_one_that_is_gone_when_its_turn_comes(self):
        gate = Gate(concurrency=1)
        toolbox = Toolbox([gate])
        executor = Executor(toolbox, max_concurrency=2)
        first, second = start(executor, gate, 1), start(executor, gate, 2)
        await gate.has(1)
        toolbox.replace(None, ())
        gate.go(1)
        assert (await first).ok
        assert error(await second) == ("unknown_tool", "not run: there is no tool 'gate' any more")
        # Neither slot is lost.
        toolbox.replace(None, [gate])
        gate.go(3, 4)
        assert [(await start(executor, gate, key)).ok for key in (3, 4)] == [True, True]

    async def test_what_a_tool_declares_anew_counts_once_its_calls_have_ended(self):
        one, two = Gate(concurrency=1), Gate(concurrency=2)
        toolbox = Toolbox([one])
        executor = Executor(toolbox)
        one.go(1)
        assert (await start(executor, one, 1)).ok
        toolbox.replace(None, [two])
        calls = [start(executor, two, key) for key in (2, 3)]
        await two.has(2)
        two.go(2, 3)
        assert all(result.ok for result in await asyncio.gather(*calls))
        await executor.aclose()
