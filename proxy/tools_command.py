"""`asynclm tools`: what the config's `[[tools]]` come to, whether they are all right, and single calls by hand."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from asynclm.adapters.tools.openapi.document import without_secrets
from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.adapters.tools.sources import Sources
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.prompt import describe, instructions
from asynclm.cml.tools import CallError, Invocation
from asynclm.proxy.config import Config, Tool, load
from asynclm.proxy.config_error import ConfigError
from asynclm.proxy.executor import Executor
from asynclm.proxy.tool_sources import load_sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asynclm tools`."""
    parser.add_argument(
        "--config", type=Path, help="the config file (default: asynclm.toml in this folder, if it exists)"
    )
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="every tool, as the model is told of it")
    listing.add_argument("--json", action="store_true", help="print JSON Lines, with the schemas")
    actions.add_parser("check", help="open each source, and say what is wrong with any")
    call = actions.add_parser("call", help="run one tool, and print its result")
    call.add_argument("name", metavar="NAME", help="the tool's name")
    call.add_argument(
        "arguments", metavar="ARGUMENTS", nargs="?", default="{}", help="""a JSON object: '{"city": "Oslo"}'"""
    )


def run(args: argparse.Namespace) -> int:
    """Do what was asked for. Returns the exit status: 1 if a tool failed or is not all right, 2 for a bad config."""
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return asyncio.run(_act(args, load(args.config, os.environ, Path.cwd())))
    except (ConfigError, ValueError) as error:
        print(f"asynclm: {error}", file=sys.stderr)
        return 2


async def _act(args: argparse.Namespace, config: Config) -> int:
    if args.action == "check":
        return await _check(config)
    if args.action == "list":
        return await _with_tools(config, lambda toolbox: _list(toolbox, args.json))
    invocation = Invocation(args.name, (), _object(args.arguments))
    return await _with_tools(config, lambda toolbox: _call(config, toolbox, invocation))


async def _with_tools(config: Config, act: Callable[[Toolbox], Coroutine[Any, Any, int]]) -> int:
    sources = load_sources(config)
    try:
        await sources.open()
        return await act(sources.toolbox)
    finally:
        await sources.aclose()


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text.encode(errors="replace"), type=dict[str, Any])
    except RecursionError:
        raise ConfigError("the arguments are nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f'the arguments must be a JSON object, such as \'{{"city": "Oslo"}}\': {error}') from None


async def _list(toolbox: Toolbox, as_json: bool) -> int:
    for spec in toolbox.specs():
        if as_json:
            print(json.dumps(msgspec.to_builtins(spec), ensure_ascii=False))
        else:
            print(f"{describe(spec).removeprefix('- ')}\n  [{spec.effect}]")
    if not len(toolbox):
        print("asynclm: there are no tools: name some in [[tools]]", file=sys.stderr)
    return 0


async def _call(config: Config, toolbox: Toolbox, invocation: Invocation) -> int:
    limits = config.limits
    executor = Executor(
        toolbox, default_timeout_s=limits.tool_timeout_s, max_result_bytes=limits.max_result_bytes, max_concurrency=1
    )
    try:
        spec, arguments = toolbox.check(invocation)
        result = await executor.execute(spec, arguments)
    except CallError as error:
        print(f"asynclm: {error.type}: {error.message}", file=sys.stderr)
        return 1
    finally:
        await executor.aclose()
    if not result.ok:
        failed = msgspec.json.decode(result.value)["error"]
        print(f"asynclm: {failed['type']}: {' '.join(failed['message'].split())}", file=sys.stderr)
        return 1
    print(result.value)
    return 0


async def _check(config: Config) -> int:
    """Each source by itself, so that all problems are seen at once; then whether all go together."""
    for warning in config.warnings:
        print(f"asynclm: warning: {warning}", file=sys.stderr)
    checked = await asyncio.gather(*(_check_source(config, entry) for entry in config.tools))
    for entry, (count, problem) in zip(config.tools, checked, strict=True):
        outcome = problem or f"{count} tool{'' if count == 1 else 's'}"
        print(f"{'FAILED' if problem else 'ok':6}  {_shown(entry)}: {outcome}")
    if any(problem for _, problem in checked):
        return 1

    async def together(toolbox: Toolbox) -> int:
        specs = toolbox.specs()
        length = len(instructions(specs))
        print(
            f"{'ok':6}  {len(specs)} tools; what the model is told of them and of calling is {length} characters long"
        )
        return 0

    try:
        return await _with_tools(config, together)
    except ToolDefinitionError as error:
        print(f"{'FAILED':6}  all together: {error}")
        return 1


async def _check_source(config: Config, entry: Tool) -> tuple[int, str | None]:
    sources = Sources([])
    if entry.mcp is not None:  # one that is down is told as what it is, and tried once
        entry = msgspec.structs.replace(entry, mcp=msgspec.structs.replace(entry.mcp, required=True))
    try:
        sources = load_sources(msgspec.structs.replace(config, tools=(entry,)))
        await sources.open()
        count = len(sources.toolbox)
        return count, None if count else "it has no tools"
    except ValueError as error:
        return 0, str(error)
    finally:
        await sources.aclose()


def _shown(entry: Tool) -> str:
    """Which entry it is; nothing that may hold a key."""
    if entry.mcp is not None:
        return f"mcp {entry.mcp.shown}"
    if entry.openapi is not None:
        return f"openapi {without_secrets(entry.openapi)}"
    return f"python {entry.python}"
