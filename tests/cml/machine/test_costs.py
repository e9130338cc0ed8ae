"""What is remembered of models and tools."""

import pytest

from asynclm.cml.machine.costs import Average, Costs, Speed, ToolRecord, ToolRecords
from asynclm.cml.tools import ToolSpec


def test_an_average_follows_what_it_sees() -> None:
    average = Average()
    assert average.value is None
    average.add(1.0)
    assert average.value == 1.0
    for _ in range(50):
        average.add(3.0)
    assert average.value == pytest.approx(3.0, rel=1e-3)


def test_a_seed_counts_until_something_was_seen_and_fades_then() -> None:
    speed = Speed(ttft=0.3, token=0.005)
    assert (speed.ttft, speed.token) == (0.3, 0.005)
    speed.began(0.8)
    assert 0.3 < (speed.ttft or 0) < 0.8


def test_speed_is_per_token_and_takes_no_notice_of_a_few() -> None:
    speed = Speed()
    speed.wrote(2, 0.0)
    assert speed.token is None
    speed.wrote(10, 0.1)
    assert speed.token == pytest.approx(0.01)


def test_a_declared_time_counts_until_one_was_measured() -> None:
    tool = ToolRecord(declared=2.0)
    assert tool.remaining(0.5) == pytest.approx(1.5)
    tool.add(0.1)
    assert tool.remaining(0.0) == pytest.approx(0.1)


def test_nothing_known_is_none() -> None:
    assert ToolRecord().remaining(1.0) is None


def test_what_remains_depends_on_how_long_it_has_run() -> None:
    tool = ToolRecord()
    for time in (0.1, 0.1, 0.1, 0.1, 0.1, 2.0, 2.1, 2.2):
        tool.add(time)
    assert tool.remaining(0.0) == pytest.approx(0.1)
    assert tool.remaining(0.5) == pytest.approx(1.6)  # the quick ones would be back by now
    assert tool.remaining(3.0) == pytest.approx(3.0)  # it has outlasted them all: as long again


def test_only_the_last_64_times_count() -> None:
    tool = ToolRecord()
    for time in (9.0,) * 100 + (1.0,) * 64:
        tool.add(time)
    assert tool.remaining(0.0) == pytest.approx(1.0)


def test_a_result_is_taken_to_lead_on_until_it_was_seen_not_to() -> None:
    tool = ToolRecord()
    assert tool.leads == 1.0
    for _ in range(20):
        tool.led(False)
    assert tool.leads < 0.05
    for _ in range(20):
        tool.led(True)
    assert tool.leads > 0.9


def test_tools_are_known_by_name_and_the_oldest_are_forgotten() -> None:
    records = ToolRecords()
    spec = ToolSpec(name="f", estimate_ms=250)
    records.of(spec).add(1.0)
    assert records.of(spec).remaining(0.0) == 1.0
    for n in range(2000):
        records.of(ToolSpec(name=f"t{n}"))
    assert records.of(spec).remaining(0.0) == 0.25  # from what it declares, anew


def test_costs_start_from_nothing() -> None:
    costs = Costs()
    assert costs.speed.ttft is None
