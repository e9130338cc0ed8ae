"""`asynclm bench local`: what the local engine's injection, batching and token monitor are worth, on a real model.

The parts are measured one after the other; after each one what is there is written, so that a run that is stopped has
its figures, too.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from asynclm.adapters.models.local.engine import OutOfMemoryError
from asynclm.adapters.models.local.settings import EMBEDDED, EngineSettings
from asynclm.adapters.models.protocol import LoadError
from asynclm.bench.workloads import Case, load_cases
from asynclm.proxy.arguments import milliseconds, positive
from asynclm.proxy.demo.bfcl import MissingDatasetError

from . import report as tables
from .batching import EngineFailedError, stall, throughput
from .clock import Clock, ClockedLoop, OwnClock, WallClock
from .injection import CONTEXTS, injections
from .results import WAYS, LocalReport, to_json
from .shapes import PREFIX, UnknownShapeError, make
from .steps import plain_steps

if TYPE_CHECKING:  # it needs the extra `local`
    from asynclm.adapters.models.local.model import Loaded

KIND: Final = "local"
HELP: Final = "a local model: in sequence against stop and resume, injection, batching and token monitor, in real time"
PARTS: Final = ("race", "injection", "batching", "monitor", "bandwidth")
DATASETS: Final = ("parallel", "multi-step-parallel")
# The paper's mean of 110 ms at its 5 ms a token (section 6).
_TOOL_TOKENS: Final = 22.0
_CHUNKS: Final = (32, 64, 128, 256, 512)
_DRAWN: Final = 200
_PROMPT: Final = 1500  # tokens that another run's prompt has
_TOGETHER: Final = 8
_ASIDE: Final = frozenset({"command", "kind", "json", "plot"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    engine = EngineSettings()
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--model",
        default=EMBEDDED,
        metavar="NAME",
        help="hub id, folder or .gguf, or random:llama-3.2-1b, random:llama-3.2-3b, random:smollm2-135m for random "
        "weights in that shape (default %(default)s)",
    )
    what.add_argument("--device", default=engine.device, metavar="NAME", help="as torch has it (default %(default)s)")
    what.add_argument("--dtype", default=engine.dtype, metavar="NAME", help="of the weights (default %(default)s)")
    what.add_argument("--threads", type=positive, metavar="N", help="of a CPU (default: all cores)")
    what.add_argument(
        "--parts",
        type=_listed(PARTS),
        default=PARTS,
        metavar="A,B,...",
        help=f"out of {','.join(PARTS)} (default: all)",
    )
    what.add_argument(
        "--datasets", type=_listed(DATASETS), default=DATASETS, metavar="A,B", help="(default: %(default)s)"
    )
    what.add_argument("--cases", type=positive, default=1, metavar="N", help="of each dataset (default %(default)s)")
    what.add_argument("--rounds", type=positive, default=1, metavar="N", help="of the cases (default %(default)s)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="what to draw cases with (default %(default)s)")
    what.add_argument(
        "--ways", type=_listed(WAYS), default=tuple(WAYS), metavar="A,B,...", help=f"out of {','.join(WAYS)}"
    )
    what.add_argument(
        "--tool-ms",
        type=milliseconds,
        metavar="MS",
        help=f"mean running time of the tools (default: that of {_TOOL_TOKENS:g} tokens, as in the paper)",
    )
    what.add_argument(
        "--clock",
        choices=("wall", "own"),
        default="wall",
        help="own: without the time in which others had the engine's core (needs --threads 1 and a CPU; "
        "default %(default)s)",
    )
    what.add_argument(
        "--contexts",
        type=_numbers,
        default=CONTEXTS,
        metavar="N,...",
        help="tokens behind which an interrupt is put (default: %(default)s)",
    )
    what.add_argument(
        "--busy-chunks", type=_numbers, default=_CHUNKS, metavar="N,...", help="to try (default: %(default)s)"
    )
    what.add_argument(
        "--seconds",
        type=positive,
        default=60,
        metavar="S",
        help="after that long nothing more of a part is begun (default %(default)s)",
    )
    out = parser.add_argument_group("what comes of it")
    out.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status (1: something went wrong, 2: it can't begin)."""
    for package in ("torch", "transformers", "llguidance"):
        if importlib.util.find_spec(package) is None:
            return _fail(f"{package} is not installed: pip install 'asynclm[local]'", 2)
    try:
        _check(args)
        with _model(args) as model:
            clock = OwnClock() if args.clock == "own" else WallClock()
            with asyncio.Runner(loop_factory=lambda: ClockedLoop(clock)) as runner:
                report = runner.run(_measure(args, _load(args, model), clock))
    except (LoadError, MissingDatasetError, UnknownShapeError, ValueError) as error:
        return _fail(error, 2)
    except (OutOfMemoryError, EngineFailedError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    for table in tables.tables(report):
        Console().print(table)
    wrong = [ran for ran in report.runs if ran.problems]
    for ran in wrong:
        print(f"asynclm: {ran.case}, {ran.way}: {'; '.join(ran.problems)}", file=sys.stderr)
    return 1 if wrong else 0


def _check(args: argparse.Namespace) -> None:
    """Whatever can be known to fail fails before a model is loaded. Raises ValueError."""
    if args.plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("matplotlib is not installed: pip install 'asynclm[bench]'")
        from asynclm.bench import plots

        plots.check(args.plot)
    for path in (args.json, args.plot):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"can't write {path}: there is no folder {path.parent}")
    if args.clock == "own" and (args.threads != 1 or args.device.startswith("cuda")):
        raise ValueError("--clock own is for an engine in one thread: give --device cpu --threads 1")
    if args.clock == "own" and not hasattr(time, "pthread_getcpuclockid"):
        raise ValueError("--clock own: this system doesn't say how long a thread has had a core")
    if {"race", "monitor"} & set(args.parts):
        load_cases(args.datasets[0], 1, args.seed, 100.0)


@contextmanager
def _model(args: argparse.Namespace) -> Iterator[str]:
    """What to load; random weights are made first, and deleted in the end."""
    if not args.model.startswith(PREFIX):
        yield args.model
        return
    with tempfile.TemporaryDirectory(prefix="asynclm-random-") as folder:
        _say(f"making random weights: {args.model.removeprefix(PREFIX)} ...")
        make(args.model.removeprefix(PREFIX), Path(folder), device=args.device, dtype=args.dtype)
        yield folder


def _load(args: argparse.Namespace, model: str) -> Loaded:
    from asynclm.adapters.models.local.model import Loaded
    from asynclm.adapters.models.transformers.load import LoadOptions, load

    loaded = load(LoadOptions(model=model, device=args.device, dtype=args.dtype, threads=args.threads), _say)
    return Loaded(loaded.engine, loaded.vocabulary)


async def _measure(args: argparse.Namespace, loaded: Loaded, clock: Clock) -> LocalReport:
    """Everything. The engine belongs to one thread at a time: what doesn't use a step loop runs in this one."""
    engine = loaded.engine
    _say(f"measuring {engine.description} ...")
    try:
        step_s = statistics.median(plain_steps(engine, min(1000, engine.context // 2), 10, clock=clock))
        report = LocalReport(
            command=_command(args),
            engine=engine.description,
            seed=args.seed,
            cores=os.cpu_count() or 1,
            clock=args.clock,
            load=[os.getloadavg()[0]],
            step_ms=step_s * 1000,
        )
        for part in args.parts:
            late = _limit(args.seconds)
            match part:
                case "race":
                    report.tool_ms = args.tool_ms or _TOOL_TOKENS * report.step_ms
                    await _race(args, loaded, report, clock, late)
                case "injection":
                    _say("injection ...")
                    report.injection = injections(
                        engine, args.contexts, chunk=EngineSettings().chunk, rounds=2, late=late, clock=clock
                    )
                    if len(report.injection) < len(args.contexts):
                        report.skipped.append(f"injection: of {len(args.contexts)} lengths some")
                case "batching":
                    await _batching(args, loaded, report, clock, late)
                case "monitor":
                    from .monitoring import monitoring

                    _say("token monitor ...")
                    case = load_cases(args.datasets[-1], 1, args.seed, 100.0)[0]
                    report.monitoring = monitoring(loaded.vocabulary, case)
                case "bandwidth":
                    from .bandwidth import bandwidth

                    _say("bandwidth ...")
                    report.bandwidth = bandwidth(engine, context=min(500, engine.context // 2), steps=20, clock=clock)
            report.load = [report.load[0], os.getloadavg()[0]]
            _write(args, report)
        return report
    finally:
        engine.close()


async def _race(
    args: argparse.Namespace, loaded: Loaded, report: LocalReport, clock: Clock, late: Callable[[], bool]
) -> None:
    from .race import race, trimmed

    tool_ms = round(report.tool_ms or 0.0, 1)
    drawn: dict[str, list[Case]] = {}
    for dataset in args.datasets:
        cases = load_cases(dataset, _DRAWN, args.seed, tool_ms)[: args.cases]
        drawn[dataset] = [trimmed(case, seed=args.seed, tool_ms=tool_ms) for case in cases]
    todo = [
        (number, dataset, case)
        for number in range(args.rounds)
        for cases in zip(*drawn.values(), strict=True)
        for dataset, case in zip(drawn, cases, strict=True)
    ]
    ways = [WAYS[name] for name in args.ways]
    for place, (number, dataset, case) in enumerate(todo):
        if place >= len(drawn) and late():
            report.skipped.append(f"race: {len(todo) - place} of {len(todo)} cases")
            return
        turned = ways[place % len(ways) :] + ways[: place % len(ways)]  # none is always the first
        for way in turned:
            _say(f"race, {place + 1} of {len(todo)} ({case.id}, {len(case.calls)} calls): {way.title} ...")
            ran = await race(loaded, dataset, case, way, number, clock)
            report.runs.append(ran)
            _write(args, report)


async def _batching(
    args: argparse.Namespace, loaded: Loaded, report: LocalReport, clock: Clock, late: Callable[[], bool]
) -> None:
    engine = loaded.engine
    _say(f"batching: {_TOGETHER} runs against 1 ...")
    report.throughput = await throughput(engine, _TOGETHER, prompt=64, tokens=24, rounds=2, late=late, clock=clock)
    prompt = min(_PROMPT, engine.context // 2)
    for chunk in args.busy_chunks:
        if late():
            report.skipped.append(f"batching: busy_chunk {chunk}")
            continue
        _say(f"batching: tokens while another prompt of {prompt} is computed, {chunk} in a pass ...")
        report.stalls.append(await stall(engine, busy_chunk=chunk, prompt=prompt, clock=clock))


def _limit(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _write(args: argparse.Namespace, report: LocalReport) -> None:
    """The files that were asked for. Raises OSError."""
    if args.json is not None:
        args.json.write_bytes(to_json(report))
    if args.plot is not None and report.runs:
        from asynclm.bench import plots

        plots.draw_local(report, args.plot)


def _command(args: argparse.Namespace) -> str:
    words = ["asynclm", "bench", KIND]
    for name, value in vars(args).items():
        if name not in _ASIDE and value is not None:
            said = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", said]
    return shlex.join(words)


def _listed(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    names = tuple(known)

    def several(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [name for name in found if name not in names]
        if unknown or not found:
            raise argparse.ArgumentTypeError(f"must be out of {', '.join(names)}, not {text!r}")
        return found

    return several


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def _say(line: str) -> None:
    print(f"asynclm: {line}", file=sys.stderr, flush=True)


def _fail(error: object, status: int) -> int:
    print(f"asynclm: {error}", file=sys.stderr)
    return status
