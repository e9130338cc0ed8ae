"""The pictures: that what is drawn is what the report says, read off the figure's artists, not its pixels."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from asynclm.bench.evaluation import Plan, evaluate
from asynclm.bench.methods import METHODS, ORDERS
from asynclm.bench.plots import draw, draw_timeline, figure
from asynclm.bench.plots.timeline import timelines
from asynclm.bench.report import percentile, speed
from asynclm.bench.results import VERSION, Report, Result, Setting
from asynclm.cml.timeline import Timeline

CLOUD = Setting(ttft_ms=310, tpot_ms=5, tool_ms=110)
SWEEP = [Setting(ttft_ms=ttft, tpot_ms=5, tool_ms=tool) for ttft in (60, 600) for tool in (110, 550)]


def measured(dataset: str, settings: list[Setting], methods: Iterable[str], count: int) -> list[Result]:
    plan = Plan(dataset=dataset, count=count, seed=5, settings=tuple(settings), methods=tuple(methods), timelines=True)
    return evaluate(plan, 1, lambda count: None)


def report(kind: str, results: list[Result], command: str = "") -> Report:
    return Report(asynclm_bench=VERSION, command=command, kind=kind, clock="virtual", seed=5, results=results)


@pytest.fixture(scope="module")
def cloud() -> list[Result]:
    return measured("multi-step-parallel", [CLOUD], METHODS, 3)


@pytest.fixture(scope="module")
def sweep() -> list[Result]:
    return measured("multi-step-parallel", SWEEP, ["parallel", "coalesce", "in-sequence"], 2)


def texts(figure: Figure) -> list[str]:
    """Everything that is written on it."""
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def of(results: list[Result], method: str) -> list[float]:
    return [result.latency_s for result in results if result.method == method]


@pytest.mark.parametrize("kind", ["parallel", "multistep", "interrupts", "lpt"])
def test_bars_are_the_mean_latencies(kind: str, cloud: list[Result]) -> None:
    drawn = figure(report(kind, cloud))
    (axes,) = drawn.axes
    bars = [container for container in axes.containers if isinstance(container, BarContainer)]
    widths = {bar.get_label(): bar.patches[0].get_width() for bar in bars}
    assert widths == {METHODS[method].title: pytest.approx(statistics.mean(of(cloud, method))) for method in METHODS}
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [METHODS[method].title for method in METHODS]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first is on top"


def test_whiskers_are_percentiles(cloud: list[Result]) -> None:
    (axes,) = figure(report("multistep", cloud)).axes
    whiskers = {}
    for lines in axes.collections:
        ((low, place), (high, _)) = lines.get_segments()[0]
        whiskers[round(place)] = (low, high)
    for place, method in enumerate(METHODS):
        latencies = of(cloud, method)
        low, high = min(statistics.mean(latencies), percentile(latencies, 10)), percentile(latencies, 90)
        assert whiskers[place] == (pytest.approx(low), pytest.approx(high))


def test_figures_beside_the_bars(cloud: list[Result]) -> None:
    (axes,) = figure(report("multistep", cloud)).axes
    for place, method in enumerate(METHODS):
        row = [text.get_text() for text in axes.texts if text.xy[1] == place and text.get_text()[0].isdigit()]
        assert row == [
            f"{statistics.mean(of(cloud, method)):.2f} s",
            f"{speed(cloud, 'sync', method)[0]:.2f}\N{MULTIPLICATION SIGN}",
            f"{speed(cloud, 'parallel', method)[0]:.2f}\N{MULTIPLICATION SIGN}",
        ]


def test_dashed_lines_are_the_mean_bounds(cloud: list[Result]) -> None:
    drawn = figure(report("multistep", cloud))
    lines = {line.get_label(): line for line in drawn.axes[0].lines}
    by_case = {result.case: result.bounds for result in cloud}
    for name, rows in (("stop_and_resume", (0, 5)), ("in_sequence", (6, 6))):
        line = lines[f"bound: {name}"]
        mean = statistics.mean(each[name] for each in by_case.values())
        assert list(line.get_xdata()) == [pytest.approx(mean)] * 2
        assert [round(y) for y in line.get_ydata()] == list(rows)
    assert any("lower bound" in text for text in texts(drawn))
    without = figure(report("multistep", [msgspec.structs.replace(each, bounds={}) for each in cloud]))
    assert not any("bound" in str(line.get_label()) for line in without.axes[0].lines)
    assert not any("lower bound" in text for text in texts(without))


def test_titles_say_what_was_measured(cloud: list[Result]) -> None:
    said = "\n".join(texts(figure(report("multistep", cloud))))
    for part in ("3 cases", "TTFT 310 ms", "5 ms a token", "tools 110 ms", "virtual clock", "simulated", "seed 5"):
        assert part in said
    real = msgspec.structs.replace(report("multistep", cloud), clock="real")
    assert "over HTTP" in "\n".join(texts(figure(real)))


def test_a_panel_for_each_setting(sweep: list[Result]) -> None:
    drawn = figure(report("multistep", sweep))
    assert len(drawn.axes) == len(SWEEP)
    for axes, setting in zip(drawn.axes, SWEEP, strict=True):
        here = [result for result in sweep if result.setting == setting]
        assert axes.patches[0].get_width() == pytest.approx(statistics.mean(of(here, "parallel")))
        assert f"TTFT {setting.ttft_ms:g} ms" in axes.get_title("left")


def test_a_panel_for_each_dataset() -> None:
    results = [each for name in ("parallel", "live-parallel") for each in measured(name, [CLOUD], ORDERS, 4)]
    drawn = figure(report("lpt", results))
    assert [axes.get_title("left") for axes in drawn.axes] == ["parallel: 4 cases", "live-parallel: 4 cases"]
    for axes, live in zip(drawn.axes, (False, True), strict=True):
        here = [result for result in results if result.case.startswith("live") == live]
        told = [text.get_text() for text in axes.texts]
        assert "speed over\nRandom" in told
        assert f"{speed(here, 'random', 'lpt')[0]:.2f}\N{MULTIPLICATION SIGN}" in told
        (bound,) = [line for line in axes.lines if line.get_label() == "bound: in_sequence"]
        assert [round(y) for y in bound.get_ydata()] == [0, 2], "all of them are in sequence"


def test_below_stands_the_command_that_repeats_it(cloud: list[Result]) -> None:
    methods = ",".join(METHODS)
    command = f"asynclm bench multistep --cases 3 --seed 5 --methods {methods} --ttft-ms 310 --tpot-ms 5 --tool-ms 110"
    for kind in ("multistep", "sweep"):
        (said,) = [text for text in texts(figure(report(kind, cloud, command))) if "asynclm bench" in text]
        lines = said[said.index("asynclm") :].splitlines()
        assert len(lines) > 1
        assert " ".join(line.strip() for line in lines) == command
        assert all(line.split()[-1][:2] != "--" for line in lines), "a flag and its value stand in one line"


def test_without_a_baseline_no_speeds(cloud: list[Result]) -> None:
    drawn = figure(report("multistep", [result for result in cloud if result.method in ("fork", "auto")]))
    assert not any("\N{MULTIPLICATION SIGN}" in text or "speed over" in text for text in texts(drawn))


def test_cells_of_a_sweep_are_speeds_over_parallel(sweep: list[Result]) -> None:
    drawn = figure(report("sweep", sweep))
    panels = [axes for axes in drawn.axes if axes.images]
    assert [axes.get_title("left") for axes in panels] == [METHODS["coalesce"].title, METHODS["in-sequence"].title]
    for axes, method in zip(panels, ("coalesce", "in-sequence"), strict=True):
        (image,) = axes.images
        for (row, ttft), (column, tool) in itertools.product(enumerate((60, 600)), enumerate((110, 550))):
            here = [each for each in sweep if (each.setting.ttft_ms, each.setting.tool_ms) == (ttft, tool)]
            value = speed(here, "parallel", method)[0]
            assert image.get_array()[row, column] == pytest.approx(math.log(value))
            (told,) = [text.get_text() for text in axes.texts if text.get_position() == (column, row)]
            assert told == f"{value:.2f}"
        assert image.get_clim() == panels[0].images[0].get_clim(), "one scale of colours"
        assert sum(image.get_clim()) == 0, "it turns at 1"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["110", "550"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["60", "600"]


def test_a_cell_that_was_not_run_stays_empty(sweep: list[Result]) -> None:
    some = [each for each in sweep if each.setting != SWEEP[0] or each.method == "parallel"]
    panel = figure(report("sweep", some)).axes[0]
    assert len(panel.texts) == len(SWEEP) - 1
    assert numpy.ma.is_masked(panel.images[0].get_array()[0, 0])


def test_a_sweep_needs_parallel_and_one_time_per_token(sweep: list[Result]) -> None:
    with pytest.raises(ValueError, match="Sync-Parallel"):
        figure(report("sweep", [each for each in sweep if each.method != "parallel"]))
    with pytest.raises(ValueError, match="Sync-Parallel"):
        figure(report("sweep", [each for each in sweep if each.method == "parallel"]))
    other = msgspec.structs.replace(sweep[0], setting=Setting(ttft_ms=60, tpot_ms=10, tool_ms=110))
    with pytest.raises(ValueError, match="time per token"):
        figure(report("sweep", [*sweep, other]))


def stretches(axes: Any, kind: str) -> list[tuple[float, float]]:
    """Where stretches of that kind begin and end, over all lanes."""
    boxes = [each.get_paths()[0].get_extents() for each in axes.collections if each.get_gid() == kind]
    return sorted((round(box.x0, 6), round(box.x1, 6)) for box in boxes)


def entries(result: Result, *kinds: str) -> list[tuple[float, int | None]]:
    assert result.timeline is not None
    return [(entry.t, entry.call) for entry in result.timeline.entries if entry.kind in kinds]


def test_a_timeline_shows_the_run(cloud: list[Result]) -> None:
    case = [result for result in cloud if result.case == cloud[0].case]
    drawn = timelines(case)
    assert len(drawn.axes) == len(METHODS)
    for axes, result in zip(drawn.axes, case, strict=True):
        assert axes.get_title("left") == METHODS[result.method].title
        assert f"{result.latency_s:.2f} s" in axes.get_title("right")
        begun = {call: t for t, call in entries(result, "dispatched")}
        assert stretches(axes, "running") == sorted((begun[call], t) for t, call in entries(result, "result"))
        marks = {kind: [line for line in axes.lines if line.get_gid() == kind] for kind in ("interrupt", "trap")}
        for kind, lines in marks.items():
            assert sorted(line.get_xdata()[0] for line in lines) == sorted(t for t, _ in entries(result, kind))
        written = [
            (low, high) for low, high in stretches(axes, "block") if high in {t for t, _ in entries(result, "call")}
        ]
        assert len(written) == 2 * len(begun), "each call in its stream's lane, and in its own"
        assert all(low < high for low, high in written)
        (end,) = [line for line in axes.lines if line.get_gid() == "end"]
        assert end.get_xdata()[0] == max(t for t, _ in entries(result, "finished"))
    assert len({axes.get_xlim() for axes in drawn.axes}) == 1, "one axis of time"


def test_calls_stand_in_the_same_order_under_all_methods(cloud: list[Result]) -> None:
    drawn = timelines([result for result in cloud if result.case == cloud[0].case])
    calls = [
        [text for label in axes.get_yticklabels() if not (text := label.get_text()).startswith(("stream", "branch"))]
        for axes in drawn.axes
    ]
    ids = [label.split()[0] for label in calls[0]]
    assert ids == sorted(ids)
    assert all(each == calls[0] for each in calls)


def test_panels_of_several_settings_say_which(sweep: list[Result]) -> None:
    case = [each for each in sweep if each.case == sweep[0].case and each.method == "coalesce"]
    titles = [axes.get_title("left") for axes in timelines(case).axes]
    name = METHODS["coalesce"].title
    assert titles == [f"{name}; TTFT {each.ttft_ms:g} ms, tools {each.tool_ms:g} ms" for each in SWEEP]


def test_what_is_written_ahead_is_drawn_apart(cloud: list[Result]) -> None:
    made = Timeline("run", "simulated", "auto", 0)
    for t, kind, stream in (
        *((0.0, "opened", 0), (0.1, "ahead", 1), (0.1, "opened", 1), (0.2, "first_token", 0), (0.3, "first_token", 1)),
        *((0.4, "closed", 0), (0.5, "adopted", 1), (0.6, "text", 1), (0.6, "closed", 1), (0.6, "finished", None)),
    ):
        made.add(t, kind, stream=stream)
    (axes,) = timelines([msgspec.structs.replace(cloud[0], timeline=made)]).axes
    assert stretches(axes, "wait") == [(0.0, 0.2), (0.1, 0.3)]
    assert stretches(axes, "ahead") == [(0.3, 0.5)]
    assert stretches(axes, "text") == [(0.2, 0.4), (0.5, 0.6)]


def test_results_without_timelines_can_not_be_drawn_as_one(cloud: list[Result], tmp_path: Path) -> None:
    bare = msgspec.structs.replace(cloud[0], timeline=None)
    with pytest.raises(ValueError, match="no timeline"):
        draw_timeline([cloud[0], bare], tmp_path / "out.png")
    with pytest.raises(ValueError, match="no runs"):
        draw_timeline([], tmp_path / "out.png")


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_suffix_says_what_is_written(name: str, begins: bytes, cloud: list[Result], tmp_path: Path) -> None:
    for number, write in enumerate(
        (lambda path: draw(report("multistep", cloud), path), lambda path: draw_timeline(cloud[:2], path))
    ):
        path = tmp_path / f"{number}{name}"
        write(path)
        assert path.read_bytes().startswith(begins)


def test_the_same_report_is_the_same_picture(cloud: list[Result], tmp_path: Path) -> None:
    drawn = [tmp_path / "1.png", tmp_path / "2.png"]
    for path in drawn:
        draw(report("multistep", cloud), path)
    assert drawn[0].read_bytes() == drawn[1].read_bytes()


@pytest.mark.parametrize("name", ["out.jpeg", "out", "png"])
def test_another_suffix_is_refused(name: str, cloud: list[Result], tmp_path: Path) -> None:
    for write in (lambda path: draw(report("multistep", cloud), path), lambda path: draw_timeline(cloud, path)):
        with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
            write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_can_not_be_written(cloud: list[Result], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        draw(report("multistep", cloud), tmp_path / "nowhere" / "out.png")
    with pytest.raises(OSError, match="No such file"):
        draw_timeline(cloud[:1], tmp_path / "nowhere" / "out.png")


def test_what_can_not_be_drawn(cloud: list[Result]) -> None:
    with pytest.raises(ValueError, match="'wire'"):
        figure(report("wire", cloud))
    for kind in ("multistep", "sweep"):
        with pytest.raises(ValueError, match="no results"):
            figure(report(kind, []))
