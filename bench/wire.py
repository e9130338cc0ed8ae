"""What the proxy costs on the wire, beside the limits that were set for it.

    python -m asynclm.bench.wire [--rounds N] [--scenario chunks,reqs,...] [--json OUT] [--check]

Starts a fake upstream and two proxies on loopback: one without tools, which passes requests through, and one with a
tool, which runs every answer through the parser and the run machine (CML mode; the answers are plain text). Every
round runs each scenario on each of them in a new random order, with direct access to the upstream beside them where
one is compared with the other; a row is the median over the rounds of what each round gave. Takes about three minutes.

Before that each is asked for whole streams by the official client, whose text must be right. A wrong answer, or any
error under load, ends the benchmark with status 1; a missed limit does so with `--check`.

The limits were set on a machine with 2 cores, partly busy. Ratios and CPU times carry over to others, the added time
to the first chunk only to a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from asynclm.bench.loadtest import fake_upstream
from asynclm.bench.loadtest.limits import CML, DIRECT, PASS, rows, table
from asynclm.bench.loadtest.load import Measured, Scenario, Target, measure
from asynclm.bench.loadtest.servers import ServerError, running
from asynclm.bench.loadtest.verify import WrongAnswerError, verify

SCENARIOS: Final = (
    Scenario("chunks", 16, "fake-200-0", direct=True, seconds=1.5),
    Scenario("reqs", 32, "fake-1-0", direct=True, seconds=1.5),
    Scenario("ttft32", 32, "fake-10-20", direct=True, requests=320, spread_s=0.2),
    Scenario("paced32", 32, "fake-40-50", direct=False, requests=64, spread_s=1.0),
    Scenario("rss", 500, "fake-50-200", direct=False, requests=500, spread_s=2.0, sample_memory=True),
)
WARM_UP: Final = tuple(scenario._replace(seconds=1.0) for scenario in SCENARIOS[:2])
ONCE: Final = frozenset({"rss"})  # at the end: memory doesn't vary from round to round
RUN_ID_HEADER: Final = "x-asynclm-run-id"  # what an answer has that was run, not passed through
OPEN_FILES: Final = 4096

CONFIG: Final = """\
[upstreams.main]
kind = "openai"
base_url = "{upstream}"
"""
TOOLS_CONFIG: Final = """
[[tools]]
python = "tools.py:forecast"
"""
TOOL: Final = '''\
def forecast(city: str, days: int = 1) -> str:
    """The weather in a city.

    Args:
        city: The city's name.
        days: How many days ahead.
    """
    return f"rain in {city} for {days} days"
'''


class BrokenError(Exception):
    """A target failed under load."""


async def bench(scenarios: list[Scenario], rounds: int, seed: int) -> list[Measured]:
    """Start everything, verify, run the rounds. Raises `ServerError`, `WrongAnswerError`, `BrokenError`, OSError."""
    async with contextlib.AsyncExitStack() as stack:
        targets = await start(stack)
        for target in targets:
            await verified(target)
        gc.freeze()  # what the official client has brought along is not looked through again before each run
        processes = [target.process for target in targets]
        order = random.Random(seed)
        for scenario in WARM_UP:
            for target in targets:
                await run(scenario, target, processes, 0)
        measured = []
        for round in range(rounds):
            for scenario in scenarios:
                if scenario.name in ONCE and round < rounds - 1:
                    continue
                chosen = [target for target in targets if scenario.direct or target.name != DIRECT]
                shuffled = order.sample(chosen, len(chosen))
                measured += [await run(scenario, target, processes, round) for target in shuffled]
            say(f"round {round + 1} of {rounds} done")
        return measured


async def start(stack: contextlib.AsyncExitStack) -> list[Target]:
    """The fake upstream and both proxies, each in a temporary folder of its own."""

    def folder(**files: str) -> Path:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asynclm-bench-")))
        for name, text in files.items():
            (path / name.replace("_", ".")).write_text(text)
        return path

    command = (sys.executable, fake_upstream.__file__, "--port", "0")
    upstream = await stack.enter_async_context(running("fake upstream", command, folder()))
    config = CONFIG.format(upstream=upstream.url)
    serve = (sys.executable, "-m", "asynclm.proxy.cli", "serve", "--config", "asynclm.toml", "--port", "0")
    targets = [Target(DIRECT, *upstream)]
    for name, files in (
        (PASS, folder(asynclm_toml=config)),
        (CML, folder(asynclm_toml=config + TOOLS_CONFIG, tools_py=TOOL)),
    ):
        targets.append(Target(name, *await stack.enter_async_context(running(f"proxy ({name})", serve, files))))
    return targets


async def verified(target: Target) -> None:
    """Ask for a stream at a model's pace and for one as fast as can be. Raises `WrongAnswerError`."""
    header = RUN_ID_HEADER if target.name == CML else None
    for chunks, delay_ms in ((20, 5), (200, 0)):
        await verify(target.name, target.url, chunks, delay_ms, header=header)
    say(f"{target.name}: answers are right")


async def run(scenario: Scenario, target: Target, processes: list[int], round: int) -> Measured:
    """One run; an error in it is the end."""
    measured = await measure(scenario, target, processes, round)
    if measured.errors or not measured.streams:
        what = ", ".join(f"{count} x {error}" for error, count in measured.errors.items()) or "nothing came"
        raise BrokenError(f"{target.name} failed in {scenario.name}: {what}")
    return measured


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def stoppable(scenarios: list[Scenario], rounds: int, seed: int) -> list[Measured]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await bench(scenarios, rounds, seed)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--scenario", help=f"only these, of {','.join(scenario.name for scenario in SCENARIOS)}")
    options.add_argument("--json", type=Path, metavar="OUT", help="write the rows and every single run to this file")
    options.add_argument("--check", action="store_true", help="exit with status 1 if a limit is missed")
    options.add_argument("--seed", type=int, default=1, help="of the order of the runs")
    args = options.parse_args()
    known = {scenario.name: scenario for scenario in SCENARIOS}
    names = args.scenario.split(",") if args.scenario else list(known)
    if not set(names) <= known.keys() or args.rounds < 1:
        options.error(f"scenarios are {', '.join(known)}; rounds at least 1")
    if not Path("/proc/self/smaps_rollup").exists():
        options.error("CPU and memory are read from Linux's /proc, which this system doesn't have")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        options.error(f"500 streams need {OPEN_FILES} open files; the limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, OPEN_FILES), hard))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            measured = runner.run(stoppable([known[name] for name in names], args.rounds, args.seed))
    except (ServerError, WrongAnswerError, BrokenError, OSError) as error:
        print(f"bench-wire: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    results = rows(measured)
    print(table(results, measured))
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode({"rows": results, "runs": measured}), indent=1))
    return 1 if args.check and not all(row.ok for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
