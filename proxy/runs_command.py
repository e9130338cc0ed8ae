"""`asynclm runs`: the runs of a proxy that is up, and the recorded ones, as a list, drawn, or run again."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from rich.console import Console

from asynclm.cml.timeline import Timeline, to_jsonl
from asynclm.proxy.picture import Picture
from asynclm.proxy.recording import command as recordings
from asynclm.proxy.registry import Summary

T = TypeVar("T")

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


class _List(msgspec.Struct):
    data: list[Summary]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asynclm runs`."""
    parser.add_argument("--url", default="http://127.0.0.1:8787", help="where the proxy listens (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=summary, description=f"asynclm runs {name}: {summary}.")
        action.add_argument(
            "--config",
            type=Path,
            help="the config file that names the store with the recordings (default: asynclm.toml in this folder)",
        )
        return action

    action("list", "the last runs, the newest first; of the store alone, if no proxy answers")
    show = action("show", "draw one run's timeline")
    show.add_argument("id", help="the run's id (header x-asynclm-run-id of its answer)")
    show.add_argument("--jsonl", action="store_true", help="print the timeline as JSON Lines instead")
    replay = action("replay", "run a recording again, on a virtual clock, and draw both timelines")
    replay.add_argument("id", help="the run's id")
    replay.add_argument("--policy", choices=recordings.policies(), help="instead of the recorded one")
    replay.add_argument("--ttft-ms", type=_milliseconds, help="time to the first token (default: the recorded median)")
    replay.add_argument("--tpot-ms", type=_milliseconds, help="time for each further piece (default: as recorded)")
    replay.add_argument(
        "--inject",
        action=argparse.BooleanOptionalAction,
        help="whether interrupts go into the live sequence (default: as recorded)",
    )
    export = action("export", "write recordings as JSON Lines, for another machine to import")
    export.add_argument("ids", nargs="*", metavar="ID", help="the runs' ids (default: all)")
    export.add_argument("--output", type=Path, metavar="FILE", help="where to (default: standard output)")
    load = action("import", "put exported recordings into the store, where they serve their requests")
    load.add_argument("files", nargs="+", type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for. Returns the exit status."""
    try:
        match args.action:
            case "replay":
                return recordings.replay(args)
            case "export":
                return recordings.export(args)
            case "import":
                return recordings.import_(args)
            case "list":
                _print_list(_runs(args))
            case _:
                _show(_timeline(args), jsonl=args.jsonl)
        return 0
    except recordings.CommandError as error:
        print(f"asynclm: {error}", file=sys.stderr)
        return error.status


def _runs(args: argparse.Namespace) -> list[Summary]:
    answered = _ask(args, "/v1/asynclm/runs", _List)
    if answered is not None:
        return answered.data
    found = recordings.summaries(args)
    if not found:
        raise recordings.CommandError(f"no proxy answers at {args.url}, and nothing is recorded: is it up? (--url)")
    return found


def _timeline(args: argparse.Namespace) -> Timeline:
    found = _ask(args, f"/v1/asynclm/runs/{quote(args.id, safe='')}", Timeline)
    return recordings.timeline(args) if found is None else found


def _ask(args: argparse.Namespace, path: str, type: type[T]) -> T | None:
    """What the proxy answers; None where none does and there is a store to look into instead. Raises `CommandError`."""
    base = args.url.rstrip("/").removesuffix("/v1")
    try:
        status, body = asyncio.run(_get(base + path))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        if recordings.has_store(args):
            print(f"asynclm: no proxy answers at {base}: this is from the store", file=sys.stderr)
            return None
        raise recordings.CommandError(f"no proxy answers at {base}: is it up? (--url)") from None
    if status != 200:
        raise recordings.CommandError(_message(body) or f"{base} answered with status {status}")
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise recordings.CommandError(f"what answers at {base} is no asynclm (--url)") from None


async def _get(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.get(url) as response:
        return response.status, await response.read()


def _message(body: bytes) -> str | None:
    try:
        error: Any = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return str(error)


def _show(timeline: Timeline, *, jsonl: bool) -> None:
    if jsonl:
        sys.stdout.buffer.write(to_jsonl(timeline))
    else:
        Console().print(Picture(timeline))


def _print_list(runs: list[Summary]) -> None:
    # Plain columns, so that a narrow terminal or a pipe loses nothing.
    print(f"{'run':28}  {'began':19}  {'seconds':>7}  {'status':10}  {'policy':9}  model")
    for each in runs:
        seconds = "" if each.duration_s is None else f"{each.duration_s:.2f}"
        line = f"{each.id:28}  {_when(each.created):19}  {seconds:>7}  {each.status:10}  {each.policy:9}  {each.model}"
        print("".join(char if char.isprintable() else "?" for char in line))  # a model's name is its client's choice


def _when(created: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created))
    except (OverflowError, ValueError, OSError):
        return "?"


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError("must be a number of milliseconds")
    return value
