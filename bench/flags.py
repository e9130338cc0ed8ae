"""The flags of `asynclm bench`, and what may stand behind them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

from asynclm.bench.methods import AUTO, COALESCE, FORK, IN_SEQUENCE, METHODS, ORDERS, PARALLEL, SYNC
from asynclm.proxy.arguments import milliseconds, positive
from asynclm.proxy.config import Limits

KINDS: Final = {
    "parallel": "independent calls: BFCL's parallel questions",
    "multistep": "chains of calls: BFCL's multi-step conversations, three of them joined into one task",
    "interrupts": "three chains of calls as tasks that arrive one after the other, by outside interrupts",
    "sweep": "multistep, at every time to first token with every tool time",
    "lpt": "independent calls in sequence: the longest written first, against other orders",
}
_MOST_CASES: Final = 10_000
BOTH: Final = "both"
DATASETS: Final = {
    "parallel": (BOTH, "parallel", "live-parallel"),
    "multistep": ("multi-step-parallel", "multi-step"),
    "interrupts": ("multi-step-parallel",),
    "sweep": ("multi-step-parallel", "multi-step"),
    "lpt": (BOTH, "parallel", "live-parallel", "multi-step-parallel"),
}
_METHODS: Final = {
    "interrupts": (SYNC, PARALLEL, COALESCE, FORK, AUTO, IN_SEQUENCE),
    "lpt": tuple(ORDERS),
}
# by kind, or for the others: time to first token, for each further one, mean of the tools
_SPEEDS: Final = {
    "interrupts": ((310.0,), (10.0,), (110.0,)),  # the paper's local model, but for what a resume costs
    "sweep": ((60.0, 150.0, 310.0, 600.0), (5.0,), (110.0, 550.0, 2200.0)),
}
_CLOUD: Final = ((310.0,), (5.0,), (110.0,))  # the paper's GPT-4o


def add_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    """The flags of one kind of evaluation."""
    what = parser.add_argument_group("what is run")
    datasets, methods = DATASETS[kind], _METHODS.get(kind, tuple(METHODS))
    if len(datasets) == 1:
        parser.set_defaults(dataset=datasets[0])
    else:
        what.add_argument(
            "--dataset",
            choices=datasets,
            default=datasets[0],
            metavar="NAME",
            help=f"one of {', '.join(datasets)} (default %(default)s)",
        )
    _number(what, "--cases", 200, "how many to draw, at most", _count)
    what.add_argument("--case", metavar="ID", help="run only this one of them, and draw its timelines")
    _number(what, "--seed", 0, "what to draw cases and tool times with", int)
    what.add_argument(
        "--methods",
        type=_listed(_one_of(methods)),
        default=methods,
        metavar="A,B,...",
        help=f"out of {','.join(methods)} (default: all)",
    )
    speeds = parser.add_argument_group("speeds (milliseconds)")
    several = kind == "sweep"
    texts = ("time to first token", "time per output token", "mean running time of the tools")
    for flag, text, default in zip(("ttft", "tpot", "tool"), texts, _SPEEDS.get(kind, _CLOUD), strict=True):
        many = several and len(default) > 1
        speeds.add_argument(
            f"--{flag}-ms",
            type=_listed(milliseconds) if many else milliseconds,
            default=default if many else default[0],
            metavar="MS,..." if many else "MS",
            help=f"{text} (default {','.join(f'{each:g}' for each in default)})",
        )
    if kind == "interrupts":
        _number(speeds, "--gap-ms", 200.0, "from the arrival of one task to the next", milliseconds)
    _add_running(parser)


def _add_running(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how it is run")
    how.add_argument(
        "--clock",
        choices=("virtual", "real"),
        default="virtual",
        help="real: official client, proxy and model over HTTP, in real time (default %(default)s)",
    )
    _number(how, "--jobs", os.cpu_count() or 1, "processes to use for the virtual clock", positive)
    _number(how, "--concurrency", 4, "how many runs go on at once in real time", positive)
    bound = Limits().max_extra_tokens
    how.add_argument(
        "--max-extra-tokens",
        type=_tokens,
        default=bound,
        metavar="N",
        help=f"what the branches of a run may cost under fork and auto (default {bound})",
    )
    out = parser.add_argument_group("what comes of it")
    out.add_argument("--json", type=Path, metavar="FILE", help="write every result to this file")
    out.add_argument("--timelines", action="store_true", help="have each run's timeline in that file")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture: .png, .svg or .pdf")


def _number(group: Any, flag: str, default: float, text: str, kind: Callable[[str], float]) -> None:
    metavar = "MS" if flag.endswith("-ms") else "N"
    group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default {default:g})")


def _tokens(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    """A number of cases."""
    number = positive(text)
    if number > _MOST_CASES:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_CASES}, not {text}")
    return number


def _one_of(known: Collection[str]) -> Callable[[str], str]:
    def one(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"must be out of {', '.join(known)}, not {text!r}")
        return text

    return one


def _listed(one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Several, with commas between; each counts once."""

    def several(text: str) -> tuple[Any, ...]:
        found = tuple(dict.fromkeys(one(part.strip()) for part in text.split(",") if part.strip()))
        if not found:
            raise argparse.ArgumentTypeError("must name at least one")
        return found

    return several
