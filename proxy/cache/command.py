"""`asynclm cache`: what the cache of tool results holds."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from asynclm.proxy.cache.contents import Contents, Kept, Stats
from asynclm.proxy.cache.key import canonical
from asynclm.proxy.config import Config, load
from asynclm.proxy.config_error import ConfigError
from asynclm.proxy.stores import UNUSABLE, open_client

_TIMEOUT_S: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asynclm cache`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("stats", "by tool: entries, bytes, and how calls were served"),
        ("get", "list the entries, or print the results of one call"),
        ("clear", "remove the entries"),
    ):
        action = actions.add_parser(name, help=summary, description=f"asynclm cache {name}: {summary}.")
        action.add_argument(
            "--config", type=Path, help="the config file (default: asynclm.toml in this folder, if it exists)"
        )
        action.add_argument("--tool", metavar="NAME", help="of this tool only")
        if name == "get":
            action.add_argument(
                "arguments", nargs="?", metavar="JSON", help='a call\'s arguments, such as \'{"city": "Oslo"}\''
            )


def run(args: argparse.Namespace) -> int:
    """Print or do what was asked for. Returns the exit status: 2 for a bad config, 1 where the store fails."""
    try:
        config = load(args.config, os.environ, Path.cwd())
        arguments = _canonical(args.arguments) if args.action == "get" and args.arguments is not None else None
    except (ConfigError, ValueError) as error:
        print(f"asynclm: {error}", file=sys.stderr)
        return 2
    settings = config.store
    if settings.url is None and not settings.path:
        print(
            "asynclm: the store is in the proxy's memory, where nobody else can look: set store.url or store.path",
            file=sys.stderr,
        )
        return 1
    if settings.url is None and not (config.base / settings.path).exists():  # looking makes no file
        config = msgspec.structs.replace(config, store=msgspec.structs.replace(settings, path=""))
    try:
        return asyncio.run(_act(config, args.action, args.tool, arguments))
    except UNUSABLE as error:
        name = open_client(config)[1]
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"asynclm: the store {name} can't be used: {said}", file=sys.stderr)
        return 1


async def _act(config: Config, action: str, tool: str | None, arguments: bytes | None) -> int:
    redis, _ = open_client(config, timeout_s=_TIMEOUT_S, or_memory=False)
    contents = Contents(redis, config.store.prefix)
    try:
        match action:
            case "stats":
                _print_stats(await contents.stats(tool))
            case "get":
                found = await contents.entries(tool, arguments)
                if arguments is None:
                    _print_list(found)
                    return 0
                if not found:
                    print("asynclm: no such call is kept (asynclm cache get lists those that are)", file=sys.stderr)
                    return 1
                for kept in found:
                    print(kept.entry.value)
            case _:
                number = await contents.clear(tool)
                print(f"{number} {'entry' if number == 1 else 'entries'} removed")
        return 0
    finally:
        await redis.aclose()


def _canonical(text: str) -> bytes:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the arguments are no JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError('the arguments must be a JSON object, such as {"city": "Oslo"}')
    return canonical(arguments)


def _print_stats(stats: dict[str, Stats]) -> None:
    width = max([len("tool"), *map(len, stats)])
    print(f"{'tool':{width}}  {'entries':>7}  {'bytes':>10}  {'hit':>8}  {'stale':>8}  {'coalesced':>9}  {'miss':>8}")
    for name, of in stats.items():
        print(
            f"{name:{width}}  {of.entries:>7}  {of.bytes:>10}  {of.hit:>8}  {of.stale:>8}  {of.coalesced:>9}  "
            f"{of.miss:>8}"
        )


def _print_list(found: list[Kept]) -> None:
    width = max([len("tool"), *(len(kept.entry.tool) for kept in found)])
    print(f"{'tool':{width}}  {'age s':>8}  {'left s':>8}  {'bytes':>9}  {'is':5}  arguments")
    for kept in found:
        entry = kept.entry
        what = "value" if entry.ok else "error"
        print(
            f"{entry.tool:{width}}  {kept.age_s:>8.0f}  {kept.left_s:>8.0f}  {kept.size:>9}  {what}  "
            f"{entry.arguments.decode()}"
        )
