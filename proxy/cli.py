"""The command line: `asynclm serve | simulate | demo | bench | tools | cache | runs`. Each command lives in a module of
its own, loaded when used.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import version
from typing import Final

# name: (module with add_arguments and run, what it does)
COMMANDS: Final = {
    "serve": ("asynclm.proxy.serve", "run the proxy"),
    "simulate": ("asynclm.adapters.models.simulated.server", "run an upstream that behaves like an ideal model"),
    "demo": ("asynclm.proxy.demo.run", "BFCL tasks through client, proxy and simulated upstream, with a picture"),
    "bench": (
        "asynclm.bench.command",
        "the paper's evaluation: every method on BFCL tasks, on a virtual clock or real",
    ),
    "tools": ("asynclm.proxy.tools_command", "list the tools of a config, check them, or call one"),
    "cache": ("asynclm.proxy.cache.command", "look into the cache of tool results, or clear it"),
    "runs": ("asynclm.proxy.runs_command", "list the runs of a proxy, or draw one"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status; errors are one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="asynclm", description="A proxy whose models call tools while they go on writing."
    )
    parser.add_argument("--version", action="version", version=f"asynclm {version('asynclm')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((argument for argument in arguments if argument in COMMANDS), None)
    run = None
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"asynclm {name}: {summary}.")
        if name == wanted:
            loaded = importlib.import_module(module)
            loaded.add_arguments(command)
            run = loaded.run
    args = parser.parse_args(arguments)
    assert run is not None, "argparse takes only known commands"
    try:
        return int(run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
