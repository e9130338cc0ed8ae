"""Real time over HTTP: right under every method, and the virtual clock's figures are its own."""

import asyncio
import math
import statistics

import msgspec
import pytest

from asynclm.bench import evaluation, real
from asynclm.bench.evaluation import Plan
from asynclm.bench.methods import METHODS
from asynclm.bench.results import Result, Setting
from asynclm.proxy.demo.loopback import LoopbackError

QUICK = Setting(ttft_ms=1.0, tpot_ms=0.0, tool_ms=1.0)


def ignore(count: int) -> None:
    pass


def test_every_method_is_right() -> None:
    plan = Plan(dataset="multi-step-parallel", count=1, seed=1, settings=(QUICK,), methods=tuple(METHODS))
    results = asyncio.run(real.evaluate(plan, 4, ignore))
    assert [result.method for result in results] == list(METHODS)
    assert [result.problems for result in results if result.problems] == []
    assert {result.calls for result in results} == {results[0].calls}


def test_interrupts_are_posted_while_the_answer_is_written() -> None:
    plan = Plan(
        dataset="multi-step-parallel",
        count=1,
        seed=1,
        settings=(Setting(ttft_ms=5.0, tpot_ms=1.0, tool_ms=110.0),),
        methods=("sync", "coalesce", "in-sequence"),
        gap_ms=20.0,
        timelines=True,
    )
    for result in asyncio.run(real.evaluate(plan, 1, ignore)):
        assert result.problems == ()
        assert result.timeline is not None
        outside = [entry for entry in result.timeline.entries if entry.kind == "outside"]
        assert len(outside) == (0 if result.method == "sync" else 2)


def test_a_run_that_fails_is_one_line() -> None:
    unknown = METHODS | {"sideways": METHODS["sync"].__class__("sideways", "Sideways", "sideways")}
    plan = Plan(dataset="multi-step", count=1, seed=1, settings=(QUICK,), methods=("sideways",))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(real, "ALL", unknown)
        with pytest.raises(LoopbackError, match=r"^a run failed: BadRequestError: .*sideways") as caught:
            asyncio.run(real.evaluate(plan, 1, ignore))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_virtual_and_real_time_agree() -> None:
    """Within 5%, in the median over the cases, for every method, beyond what a plain sleep takes too long by: so late
    does a busy machine wake who waits. Another load makes a run slower, none faster: a case counts by its quickest run,
    and what is off is run again. A virtual clock that is wrong stays so.
    """
    plan = Plan(
        dataset="multi-step-parallel",
        count=3,
        seed=11,
        settings=(Setting(ttft_ms=150.0, tpot_ms=5.0, tool_ms=110.0),),
        methods=("sync", "parallel", "immediate", "coalesce", "fork", "in-sequence"),
    )
    exact = {(each.method, each.case): each.latency_s for each in evaluation.evaluate(plan, 1, ignore)}
    ratios = dict.fromkeys(exact, math.inf)
    off: dict[str, float] = dict.fromkeys(plan.methods, math.inf)
    for _ in range(8):
        results, late = asyncio.run(beside_a_sleeper(msgspec.structs.replace(plan, methods=tuple(off))))
        for each in results:
            case = each.method, each.case
            ratio = each.latency_s / exact[case]
            ratios[case] = min(ratios[case], max(ratio / late, min(ratio, 1.0)))
        medians = {method: statistics.median(ratios[case] for case in ratios if case[0] == method) for method in off}
        off = {method: median for method, median in medians.items() if not 0.95 <= median <= 1.05}
        if not off:
            return
    pytest.fail(f"real time over virtual: {off}")


async def beside_a_sleeper(plan: Plan) -> tuple[list[Result], float]:
    """The plan's results, and how many times too long a sleep of a tenth of a second took beside it (1 or more)."""
    slept: list[float] = []

    async def sleep() -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.1)
            slept.append((loop.time() - began) / 0.1)

    sleeper = asyncio.create_task(sleep())
    try:
        return list(await real.evaluate(plan, 3, ignore)), max(1.0, statistics.mean(slept))
    finally:
        sleeper.cancel()
        await asyncio.wait((sleeper,))
