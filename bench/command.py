"""The command `asynclm bench`: the paper's evaluation."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import shlex
import sys
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asynclm.bench import report, traps
from asynclm.bench.evaluation import Plan, UnknownCaseError
from asynclm.bench.evaluation import evaluate as virtually
from asynclm.bench.flags import BOTH, DATASETS, KINDS, add_kind
from asynclm.bench.local import command as local
from asynclm.bench.methods import ALL, PARALLEL
from asynclm.bench.results import VERSION, Report, Result, Setting, to_json
from asynclm.proxy.config import Limits
from asynclm.proxy.demo.bfcl import MissingDatasetError
from asynclm.proxy.demo.loopback import LoopbackError
from asynclm.proxy.picture import Picture

_INSTALL: Final = "pip install 'asynclm[bench]'"
# What does not matter to the figures, and so not to the command that repeats them.
_ASIDE: Final = frozenset({"command", "kind", "jobs", "concurrency", "json", "timelines", "plot"})


class _CannotBeginError(Exception):
    """The evaluation can't begin; the message is one line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `asynclm bench`."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, text in KINDS.items():
        add_kind(kinds.add_parser(name, help=text, description=f"asynclm bench {name}: {text}."), name)
    for other in (local, traps):
        description = f"asynclm bench {other.KIND}: {other.HELP}."
        other.add_arguments(kinds.add_parser(other.KIND, help=other.HELP, description=description))


def run(args: argparse.Namespace) -> int:
    """Carry out `asynclm bench`; returns the exit status (1: something went wrong, 2: it can't begin)."""
    if args.kind == traps.KIND:
        return traps.run(args)
    if args.kind == local.KIND:
        return local.run(args)
    console = Console()
    try:
        _check(args)
        found = [(plan, _evaluate(plan, args, console)) for plan in _with_case(_plans(args))]
    except (MissingDatasetError, UnknownCaseError, ValueError, _CannotBeginError) as error:
        return _fail(error, 2)
    except LoopbackError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    for plan, results in found:
        _show(plan, results, console)
    results = [result for _, results in found for result in results]
    try:
        _write(args, results)
    except OSError as error:
        return _fail(f"can't write {error.filename}: {error.strerror or error}", 1)
    wrong = [result for result in results if result.problems]
    for result in wrong:
        for problem in result.problems:
            console.print(f"{result.case}, {result.method}: {problem}", style="red", markup=False, highlight=False)
    return 1 if wrong else 0


def _check(args: argparse.Namespace) -> None:
    """Whatever can be known to fail fails before anything is run."""
    needed = [*(["looptime"] if args.clock == "virtual" else []), *(["matplotlib"] if args.plot else [])]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise _CannotBeginError(f"{package} is not installed: {_INSTALL}")
    if args.kind == "sweep" and PARALLEL not in args.methods:
        raise _CannotBeginError(f"sweep compares with {PARALLEL}: it must be among the methods")
    if args.kind == "sweep" and args.plot is not None and args.case is None and set(args.methods) == {PARALLEL}:
        raise _CannotBeginError(f"sweep draws the speed over {PARALLEL}: name a method beside it")
    if args.tpot_ms == 0 and 0 in _several(args.tool_ms):
        raise _CannotBeginError("tokens and tools that take no time leave nothing to measure: --tpot-ms or --tool-ms")
    if args.plot is not None:
        from asynclm.bench import plots

        plots.check(args.plot)
    for path in (args.json, args.plot):
        if path is not None and not path.parent.is_dir():
            raise _CannotBeginError(f"can't write {path}: there is no folder {path.parent}")


def _plans(args: argparse.Namespace) -> list[Plan]:
    """A plan for each dataset."""
    settings = [
        Setting(ttft_ms=ttft, tpot_ms=tpot, tool_ms=tool)
        for ttft, tpot, tool in itertools.product(*map(_several, (args.ttft_ms, args.tpot_ms, args.tool_ms)))
    ]
    return [
        Plan(
            dataset=dataset,
            count=args.cases,
            seed=args.seed,
            settings=tuple(settings),
            methods=args.methods,
            case=args.case,
            gap_ms=getattr(args, "gap_ms", None),
            limits=Limits(max_extra_tokens=args.max_extra_tokens),
            timelines=args.timelines or args.case is not None,
        )
        for dataset in (("parallel", "live-parallel") if args.dataset == BOTH else (args.dataset,))
    ]


def _with_case(plans: list[Plan]) -> list[Plan]:
    """Those that have the case, if one is named. Raises `UnknownCaseError` if none has."""
    found, problem = [], None
    for plan in plans:
        try:
            plan.runs()
            found.append(plan)
        except UnknownCaseError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found


def _several(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _evaluate(plan: Plan, args: argparse.Namespace, console: Console) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(plan.dataset, total=plan.runs())

        def done(count: int) -> None:
            progress.advance(bar, count)

        if args.clock == "virtual":
            return virtually(plan, args.jobs, done)
        from asynclm.bench import real

        return asyncio.run(real.evaluate(plan, args.concurrency, done))


def _show(plan: Plan, results: list[Result], console: Console) -> None:
    if plan.case is not None:
        timelines = [result.timeline for result in results if result.timeline is not None]
        console.print(Picture(*timelines, titles=[_title(result, plan) for result in results]))
        console.print()
    if len(plan.settings) > 1:
        console.print(report.sweep(results))
        return
    console.print(report.heading(plan.dataset, results), highlight=False)
    console.print(report.table(results))
    console.print()


def _title(result: Result, plan: Plan) -> str:
    said = f"{result.case}, {ALL[result.method].title}"
    if len(plan.settings) > 1:
        said += f", {result.setting.ttft_ms:g} ms to the first token, tools {result.setting.tool_ms:g} ms"
    return f"{said}:"


def _write(args: argparse.Namespace, results: list[Result]) -> None:
    """The files that were asked for. Raises OSError."""
    written = Report(
        asynclm_bench=VERSION,
        command=_command(args),
        kind=args.kind,
        clock=args.clock,
        seed=args.seed,
        results=results,
    )
    if args.json is not None:
        args.json.write_bytes(to_json(written))
    if args.plot is not None:
        from asynclm.bench import plots

        if args.case is None:
            plots.draw(written, args.plot)
        else:
            plots.draw_timeline(results, args.plot)


def _command(args: argparse.Namespace) -> str:
    """The command that gives the same results again."""
    words = ["asynclm", "bench", args.kind]
    for name, value in vars(args).items():
        if name not in _ASIDE and value is not None and not (name == "dataset" and len(DATASETS[args.kind]) == 1):
            words += [f"--{name.replace('_', '-')}", _word(value)]
    return shlex.join(words)


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fail(error: object, status: int) -> int:
    print(f"asynclm: {error}", file=sys.stderr)
    return status
