"""The command `asynclm demo`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asynclm.cml.machine import POLICIES
from asynclm.proxy.arguments import milliseconds, positive
from asynclm.proxy.demo import report
from asynclm.proxy.demo.bfcl import Case, MissingDatasetError, draw_cases, load_samples
from asynclm.proxy.demo.loopback import LoopbackError
from asynclm.proxy.demo.report import Outcome
from asynclm.proxy.demo.running import Settings, run_cases

_POLICIES = ("sync", "parallel", "auto")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `asynclm demo`."""
    parser.add_argument("--cases", type=positive, default=12, help="how many tasks to run (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which tasks and tool times to draw (default %(default)s)")
    parser.add_argument(
        "--policies",
        type=_names,
        default=_POLICIES,
        metavar="A,B,...",
        help=f"policies to compare (default {','.join(_POLICIES)})",
    )
    parser.add_argument(
        "--ttft-ms", type=milliseconds, default=150.0, metavar="MS", help="time to first token (default 150)"
    )
    parser.add_argument(
        "--tpot-ms", type=milliseconds, default=5.0, metavar="MS", help="time per output token (default 5)"
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=4,
        metavar="N",
        help="how many runs go on at once (default %(default)s)",
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the typical case's picture to this file")
    parser.add_argument("--brief", action="store_true", help="draw one typical case, not every run")


def run(args: argparse.Namespace) -> int:
    """Carry out `asynclm demo`; returns the exit status (1: something went wrong, 2: it can't begin)."""
    console = Console()
    try:
        cases = draw_cases(load_samples(), args.cases, args.seed)
    except (MissingDatasetError, ValueError) as error:
        return _fail(error, 2)
    console.print(
        f"Tasks from BFCL, {len(cases)} of them, each three chains of calls; a simulated model, "
        f"{args.ttft_ms:g} ms to the first token, {args.tpot_ms:g} ms a token.\n",
        highlight=False,
    )
    try:
        outcomes = _run(cases, args, console)
    except MissingDatasetError as error:
        return _fail(error, 2)
    except LoopbackError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    shown = report.typical_case(outcomes)
    others = set() if args.brief else {outcome.case for outcome in outcomes} - {shown}
    for case in [*sorted(others), shown]:  # the typical one last, where it is seen beside the table
        console.print(report.picture(outcomes, case))
        console.print()
    console.print(report.table(outcomes))
    if args.svg is not None:
        try:
            report.write_svg(report.picture(outcomes, shown), args.svg, title="asynclm demo")
        except OSError as error:
            return _fail(f"can't write {args.svg}: {error.strerror or error}", 1)
    wrong = [outcome for outcome in outcomes if outcome.problems]
    for outcome in wrong:
        for problem in outcome.problems:
            console.print(f"case {outcome.case}, {outcome.policy}: {problem}", style="red", markup=False)
    return 1 if wrong else 0


def _run(cases: list[Case], args: argparse.Namespace, console: Console) -> list[Outcome]:
    settings = Settings(
        seed=args.seed,
        policies=args.policies,
        ttft_ms=args.ttft_ms,
        tpot_ms=args.tpot_ms,
        concurrency=args.concurrency,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("BFCL tasks", total=len(cases) * len(args.policies))

        def done(outcome: Outcome) -> None:
            progress.advance(bar)

        return asyncio.run(run_cases(cases, settings, done))


def _fail(error: object, status: int) -> int:
    print(f"asynclm: {error}", file=sys.stderr)
    return status


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or not POLICIES.keys() >= set(names):
        raise argparse.ArgumentTypeError(f"must be policies out of {', '.join(POLICIES)}, not {text!r}")
    return names
