"""`asynclm bench`: its flags, tables and files."""

import argparse
import importlib.util
import itertools
import shlex
from pathlib import Path

import pytest

from asynclm.bench import command, evaluation, virtual
from asynclm.bench.command import add_arguments, run
from asynclm.bench.measure import Finished
from asynclm.bench.results import Report, from_json
from asynclm.bench.workloads import multistep


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(flags)


def bench(*flags: str) -> int:
    return run(parsed(*flags))


def report(path: Path, *flags: str) -> Report:
    assert bench(*flags, "--json", str(path)) == 0
    return from_json(path.read_bytes())


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (
            "parallel",
            ["Sync", "Sync-Parallel", "Async-Naive", "Async-Coalesce", "Async-Fork", "Async-Auto", "Async"] * 2,
        ),
        ("multistep", ["Sync", "Sync-Parallel", "Async-Naive", "Async-Coalesce", "Async-Fork", "Async-Auto", "Async"]),
        ("interrupts", ["Sync", "Sync-Parallel", "Async-Coalesce", "Async-Fork", "Async-Auto", "Async"]),
        ("lpt", ["LPT", "Random", "Shortest"] * 2),
    ],
)
def test_tables(kind: str, rows: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = report(tmp_path / "out.json", kind, "--cases", "2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("2/2")] == rows
    assert max(map(len, lines)) <= 80
    assert (found.kind, found.clock, found.seed, len(found.results)) == (kind, "virtual", 0, 2 * len(rows))
    assert all(result.timeline is None for result in found.results)


def test_the_sweep(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = report(tmp_path / "out.json", "sweep", "--cases", "1", "--ttft-ms", "60,600", "--tool-ms", "110,550,2200")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line and line[-1] == "7/7"]
    cells = [(60, 110), (60, 550), (60, 2200), (600, 110), (600, 550), (600, 2200)]
    assert [(int(row[0]), int(row[1])) for row in rows] == cells
    settings = [(result.setting.ttft_ms, result.setting.tool_ms) for result in found.results]
    assert [cell for cell, _ in itertools.groupby(settings)] == cells
    assert all(float(row[2]) < 1 < float(row[7]) for row in rows)  # Sync, Async
    assert all(result.bounds["stop_and_resume"] > 0 for result in found.results)


@pytest.mark.parametrize(
    "flags",
    [
        ("multistep", "--cases", "3", "--seed", "5", "--methods", "sync,auto", "--ttft-ms", "59.5"),
        ("interrupts", "--cases", "3", "--gap-ms", "100"),
        ("sweep", "--cases", "1", "--ttft-ms", "60,310", "--tool-ms", "110"),
        ("lpt", "--dataset", "live-parallel", "--cases", "3"),
    ],
)
def test_the_command_in_a_report_gives_the_same_report(flags: tuple[str, ...], tmp_path: Path) -> None:
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    words = shlex.split(report(first, *flags).command)
    assert words[:2] == ["asynclm", "bench"]
    assert bench(*words[2:], "--json", str(again)) == 0
    assert first.read_bytes() == again.read_bytes()


def test_one_case_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--case", "multi_step_parallel_2", "--methods", "parallel,auto", "--plot", str(tmp_path / "case.svg"))
    found = report(tmp_path / "out.json", "multistep", *flags)
    out = capsys.readouterr().out
    assert "multi_step_parallel_2, Sync-Parallel:" in out
    assert "multi_step_parallel_2, Async-Auto:" in out
    assert {result.case for result in found.results} == {"multi_step_parallel_2"}
    assert all(result.timeline is not None for result in found.results)
    assert (tmp_path / "case.svg").read_text().count("<svg") == 1


def test_a_case_of_either_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = report(tmp_path / "out.json", "parallel", "--case", "live_parallel_0-0-0", "--methods", "auto")
    assert len(found.results) == 1


def test_pictures_and_timelines(tmp_path: Path) -> None:
    flags = ("--cases", "2", "--methods", "sync,auto", "--timelines", "--plot", str(tmp_path / "bars.png"))
    found = report(tmp_path / "out.json", "multistep", *flags)
    assert all(result.timeline is not None for result in found.results)
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_run_is_exit_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = virtual.run_case

    def wrong(*args: object) -> Finished:
        finished = right(*args)  # type: ignore[arg-type]
        finished.workshop.done.clear()
        return finished

    monkeypatch.setattr(virtual, "run_case", wrong)
    assert bench("multistep", "--cases", "1", "--methods", "auto") == 1
    out = capsys.readouterr().out
    assert "0/1" in out
    assert "multi_step_parallel_1, auto: a1 was not executed" in out


@pytest.mark.parametrize("package", ["looptime", "matplotlib"])
def test_what_is_missing_is_said(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    assert bench("multistep", "--plot", str(tmp_path / "x.png")) == 2
    assert capsys.readouterr().err == f"asynclm: {package} is not installed: pip install 'asynclm[bench]'\n"


def test_without_bfcl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bfcl_eval" else there(name))
    multistep._samples.cache_clear()
    evaluation._drawn.cache_clear()
    assert bench("multistep") == 2
    assert capsys.readouterr().err.startswith("asynclm: bfcl-eval is not installed: pip install --no-deps")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("multistep", "--case", "nope", "--cases", "3"), "no case 'nope' among the 3 that were drawn"),
        (("parallel", "--case", "nope", "--cases", "3"), "no case 'nope' among the 3 that were drawn"),
        (("multistep", "--plot", "x.bmp"), "x.bmp: pictures are written as .png"),
        (("multistep", "--json", "nowhere/x.json"), "can't write nowhere/x.json: there is no folder nowhere"),
        (("sweep", "--methods", "sync,auto"), "sweep compares with parallel"),
        (("sweep", "--methods", "parallel", "--plot", "x.png"), "name a method beside it"),
        (("multistep", "--tpot-ms", "0", "--tool-ms", "0"), "leave nothing to measure"),
    ],
)
def test_what_cannot_begin_is_one_line(flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asynclm: ")
    assert said in line


def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    assert bench("multistep", "--cases", "1", "--methods", "auto", "--json", str(tmp_path / "out.json")) == 1
    assert "can't write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("sideways",),
        ("multistep", "--cases", "0"),
        ("multistep", "--cases", "many"),
        ("multistep", "--cases", "10001"),
        ("multistep", "--methods", " , "),
        ("multistep", "--methods", "lpt"),
        ("lpt", "--methods", "sync"),
        ("multistep", "--ttft-ms", "-1"),
        ("multistep", "--ttft-ms", "60,150"),
        ("sweep", "--ttft-ms", "60,nan"),
        ("multistep", "--clock", "sundial"),
        ("parallel", "--dataset", "multi-step"),
    ],
)
def test_flags_that_make_no_sense(flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as exit:
        bench(*flags)
    assert exit.value.code == 2


def test_only_what_matters_stands_in_the_command() -> None:
    args = parsed("interrupts", "--jobs", "1", "--timelines", "--cases", "7")
    said = command._command(args)
    assert "--jobs" not in said
    assert "--timelines" not in said
    assert "--dataset" not in said
    assert "--cases 7" in said
