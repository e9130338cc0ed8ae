import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from asynclm.cml.timeline import Timeline
from asynclm.proxy.demo.report import Outcome, picture, table, typical_case, write_svg


def outcome(case: int, policy: str, latency_s: float, streams: int, *problems: str) -> Outcome:
    timeline = Timeline("run", "m", policy, 0)
    timeline.add(0.0, "opened", stream=0)
    timeline.add(latency_s, "closed", stream=0)
    return Outcome(case, policy, latency_s + 0.1, latency_s, streams, timeline, problems)


OUTCOMES = [
    outcome(1, "sync", 4.0, 5),
    outcome(1, "parallel", 2.0, 3),
    outcome(1, "auto", 1.0, 2),
    outcome(2, "sync", 3.0, 5),
    outcome(2, "parallel", 2.0, 3, "wrong"),
    outcome(2, "auto", 1.5, 4),
    outcome(3, "sync", 6.0, 5),
    outcome(3, "parallel", 4.0, 3),
    outcome(3, "auto", 2.0, 3),
]


def shown(*things: object) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(*things)
    return out.getvalue()


def test_the_table() -> None:
    lines = [re.split(" {2,}", line.strip()) for line in shown(table(OUTCOMES)).splitlines()]
    assert {line[0]: line[1:] for line in lines if len(line) == 7} == {
        "policy": ["latency, s", "total, s", "sync", "parallel", "resumes", "right"],
        "sync": ["4.00 / 4.33", "4.10 / 4.43", "1.00 / 1.00", "0.67 / 0.61", "4.0", "3/3"],
        "parallel": ["2.00 / 2.67", "2.10 / 2.77", "1.50 / 1.67", "1.00 / 1.00", "2.0", "2/3"],
        "auto": ["1.50 / 1.50", "1.60 / 1.60", "3.00 / 3.00", "2.00 / 1.78", "2.0", "3/3"],
    }


def test_without_baselines_there_are_no_speed_ups() -> None:
    assert "speed over" not in shown(table([outcome(1, "auto", 1.0, 1)]))


def test_the_typical_case_has_the_median_speed_up() -> None:
    assert typical_case(OUTCOMES) == 3  # 4, 2 and 3 times
    assert typical_case([outcome(7, "auto", 1.0, 1)]) == 7


def test_the_picture_shows_the_cases_runs() -> None:
    text = shown(picture(OUTCOMES, 2))
    assert [line for line in text.splitlines() if line.startswith("case")] == [
        "case 2, sync:  3000 ms",
        "case 2, parallel:  2000 ms",
        "case 2, auto:  1500 ms",
    ]


def test_the_picture_as_svg(tmp_path: Path) -> None:
    write_svg(picture(OUTCOMES, 2), tmp_path / "run.svg", "a title")
    root = ElementTree.parse(tmp_path / "run.svg").getroot()
    assert root.tag.endswith("svg")
    assert "url(http" not in (tmp_path / "run.svg").read_text()
    assert "a title" in "".join(root.itertext()).replace("\N{NO-BREAK SPACE}", " ")
    with pytest.raises(OSError, match="missing"):
        write_svg(picture(OUTCOMES, 2), tmp_path / "missing" / "run.svg", "a title")
