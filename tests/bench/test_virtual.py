"""Cases on the virtual clock: right under every method, and the same every time."""

import pytest
from msgspec.structs import replace

from asynclm.bench.methods import METHODS
from asynclm.bench.results import Setting
from asynclm.bench.virtual import run_case
from asynclm.bench.workloads import load_cases

SETTING = Setting(ttft_ms=310.0, tpot_ms=5.0, tool_ms=110.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_right(method: str) -> None:
    for case in load_cases("multi-step-parallel", 4, 3, SETTING.tool_ms):
        result = run_case(case, METHODS[method], SETTING)
        assert result.problems == ()
        assert result.calls == len(case.calls)
        assert result.first_token_s == 0.31
        assert result.latency_s > max(call.running_ms for call in case.calls) / 1000


def test_the_same_case_gives_the_same_figures() -> None:
    first, again = (
        run_case(load_cases("multi-step-parallel", 1, 5, 110.0)[0], METHODS["auto"], SETTING, with_timeline=True)
        for _ in range(2)
    )
    assert first.timeline is not None
    assert again.timeline is not None
    assert first.timeline.entries == again.timeline.entries
    assert replace(first, timeline=None) == replace(again, timeline=None)


def test_a_chain_alone_takes_its_calls_and_a_first_token_after_each() -> None:
    fast = Setting(ttft_ms=310.0, tpot_ms=0.0, tool_ms=110.0)
    for case in load_cases("multi-step", 5, 0, fast.tool_ms):
        result = run_case(case, METHODS["sync"], fast)
        expected = sum(call.running_ms + fast.ttft_ms for call in case.calls) / 1000
        assert result.latency_s == pytest.approx(expected, abs=2e-6)
