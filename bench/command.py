"""The command `asynclm bench`: the paper's evaluation."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asynclm.bench import report
from asynclm.bench.evaluation import Plan, UnknownCaseError, evaluate, runs
from asynclm.bench.methods import METHODS
from asynclm.bench.results import VERSION, Report, Result, Setting, to_json
from asynclm.proxy.demo.bfcl import MissingDatasetError

_INSTALL: Final = "pip install 'asynclm[bench]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `asynclm bench`."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    multistep = kinds.add_parser("multistep", help="chains of calls, three side by side")
    _add_common(multistep)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=_positive, default=200, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which cases and tool times to draw (default %(default)s)")
    parser.add_argument("--ttft-ms", type=_milliseconds, default=310.0, metavar="MS", help="time to first token (310)")
    parser.add_argument("--tpot-ms", type=_milliseconds, default=5.0, metavar="MS", help="time per output token (5)")
    parser.add_argument("--tool-ms", type=_milliseconds, default=110.0, metavar="MS", help="tools' mean time (110)")
    parser.add_argument(
        "--methods",
        type=_methods,
        default=tuple(METHODS),
        metavar="A,B,...",
        help=f"out of {', '.join(METHODS)} (default: all)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every result to this file")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes to use")


def run(args: argparse.Namespace) -> int:
    """Carry out `asynclm bench`; returns the exit status (1: something went wrong, 2: it can't begin)."""
    console = Console()
    if importlib.util.find_spec("looptime") is None:
        return _fail(f"looptime is not installed: {_INSTALL}", 2)
    plan = Plan(
        dataset="multi-step-parallel",
        count=args.cases,
        seed=args.seed,
        settings=(Setting(ttft_ms=args.ttft_ms, tpot_ms=args.tpot_ms, tool_ms=args.tool_ms),),
        methods=args.methods,
    )
    try:
        results = _evaluate(plan, args.jobs, console)
    except (MissingDatasetError, UnknownCaseError, ValueError) as error:
        return _fail(error, 2)
    console.print(report.table(results))
    if args.json is not None:
        written = Report(
            asynclm_bench=VERSION,
            command="asynclm bench",
            kind=args.kind,
            clock="virtual",
            seed=args.seed,
            results=results,
        )
        try:
            args.json.write_bytes(to_json(written))
        except OSError as error:
            return _fail(f"can't write {args.json}: {error.strerror or error}", 1)
    wrong = [result for result in results if result.problems]
    for result in wrong:
        for problem in result.problems:
            console.print(f"{result.case}, {result.method}: {problem}", style="red", markup=False, highlight=False)
    return 1 if wrong else 0


def _evaluate(plan: Plan, jobs: int, console: Console) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("runs", total=runs(plan))
        return evaluate(plan, jobs, lambda count: progress.advance(bar, count))


def _fail(error: object, status: int) -> int:
    print(f"asynclm: {error}", file=sys.stderr)
    return status


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return number


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or not METHODS.keys() >= set(names):
        raise argparse.ArgumentTypeError(f"must be methods out of {', '.join(METHODS)}, not {text!r}")
    return names
