"""`asynclm runs`: the runs of a proxy that is up, as a list, or one of them drawn."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, Final

import aiohttp
import msgspec
from rich.console import Console

from asynclm.cml.timeline import Timeline, to_jsonl
from asynclm.proxy.picture import Picture
from asynclm.proxy.registry import Summary

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


class _List(msgspec.Struct):
    data: list[Summary]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asynclm runs`."""
    parser.add_argument("--url", default="http://127.0.0.1:8787", help="where the proxy listens (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the last runs, the newest first")
    show = actions.add_parser("show", help="draw one run's timeline")
    show.add_argument("id", help="the run's id (header x-asynclm-run-id of its answer)")
    show.add_argument("--jsonl", action="store_true", help="print the timeline as JSON Lines instead")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for. Returns the exit status."""
    base = args.url.rstrip("/").removesuffix("/v1")
    path = "/v1/asynclm/runs" if args.action == "list" else f"/v1/asynclm/runs/{args.id}"
    try:
        status, body = asyncio.run(_get(base + path))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        print(f"asynclm: no proxy answers at {base}: is it up? (--url)", file=sys.stderr)
        return 1
    if status != 200:
        print(f"asynclm: {_message(body) or f'{base} answered with status {status}'}", file=sys.stderr)
        return 1
    if args.action == "list":
        _print_list(msgspec.json.decode(body, type=_List).data)
    elif args.jsonl:
        sys.stdout.buffer.write(to_jsonl(msgspec.json.decode(body, type=Timeline)))
    else:
        Console().print(Picture(msgspec.json.decode(body, type=Timeline)))
    return 0


async def _get(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.get(url) as response:
        return response.status, await response.read()


def _message(body: bytes) -> str | None:
    try:
        error: Any = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return str(error)


def _print_list(runs: list[Summary]) -> None:
    # Plain columns, so that a narrow terminal or a pipe loses nothing.
    print(f"{'run':28}  {'began':8}  {'seconds':>7}  {'status':8}  {'policy':9}  model")
    for each in runs:
        began = time.strftime("%H:%M:%S", time.localtime(each.created))
        seconds = "" if each.duration_s is None else f"{each.duration_s:.2f}"
        print(f"{each.id:28}  {began:8}  {seconds:>7}  {each.status:8}  {each.policy:9}  {each.model}")
