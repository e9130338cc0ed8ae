"""`asynclm bench traps`: what is best for a waiting sequence's cache, by context length and wait (paper, figure 7).

A real model is loaded, and measured as the local engine measures it when it starts, but for longer. The curves are kept
for later starts.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from asynclm.adapters.models.local.calibration import Measurement, keep, measure
from asynclm.adapters.models.local.costs import Curve
from asynclm.adapters.models.local.engine import Engine, OutOfMemoryError
from asynclm.adapters.models.local.settings import EMBEDDED, EngineSettings
from asynclm.adapters.models.local.traps import CostHandler
from asynclm.adapters.models.protocol import LoadError
from asynclm.proxy.arguments import milliseconds, positive

KIND: Final = "traps"
HELP: Final = "a local model at a trap: keep, swap or recompute its cache, by context length and wait"
_LENGTHS: Final = (64, 256, 1024, 4096, 8192)
_CAPTION: Final = (
    "`in`: the best way if the next interrupt is expected in that time and memory is short; where it isn't, the engine "
    "keeps. Measured up to {:,} tokens; the curves reach beyond (*). For n tokens, recompute takes {} ms, swap {} ms."
)
_WAITS: Final = {"10 ms": 0.01, "100 ms": 0.1, "1 s": 1.0, "10 s": 10.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    defaults = EngineSettings()
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", default=EMBEDDED, metavar="NAME", help="hub id, folder or .gguf (default %(default)s)")
    what.add_argument("--device", default=defaults.device, metavar="NAME", help="as torch has it (default %(default)s)")
    what.add_argument("--dtype", default=defaults.dtype, metavar="NAME", help="of the weights (default %(default)s)")
    what.add_argument("--threads", type=positive, metavar="N", help="of a CPU (default: all cores)")
    what.add_argument(
        "--chunk",
        type=positive,
        default=defaults.chunk,
        metavar="N",
        help="tokens of a prompt in one pass (default %(default)s)",
    )
    what.add_argument(
        "--seconds", type=_seconds, default=45.0, metavar="S", help="how long to measure, about (default %(default)g)"
    )
    what.add_argument("--measured", type=Path, metavar="FILE", help="measure nothing: take what --json wrote")
    out = parser.add_argument_group("what comes of it")
    out.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to this file")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status (1: something went wrong, 2: it can't begin)."""
    if args.plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            return _fail("matplotlib is not installed: pip install 'asynclm[bench]'", 2)
        from asynclm.bench import plots

        try:
            plots.check(args.plot)
        except ValueError as error:
            return _fail(error, 2)
    for path in (args.json, args.plot):
        if path is not None and not path.parent.is_dir():
            return _fail(f"can't write {path}: there is no folder {path.parent}", 2)
    try:
        measurement = _measured(args) if args.measured is None else _read(args.measured)
    except (LoadError, ValueError) as error:
        return _fail(error, 2)
    except OutOfMemoryError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    _show(measurement, Console())
    try:
        if args.json is not None:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(measurement)))
        if args.plot is not None:
            plots.draw_regions(measurement, args.plot)
    except OSError as error:
        return _fail(f"can't write {error.filename}: {error.strerror or error}", 1)
    return 0


def _measured(args: argparse.Namespace) -> Measurement:
    """Load and measure. Raises `LoadError`, `OutOfMemoryError`."""
    from asynclm.adapters.models.transformers.load import LoadOptions, cache_folder, load

    options = LoadOptions(model=args.model, device=args.device, dtype=args.dtype, threads=args.threads)
    engine = load(options, _say).engine
    try:
        return measured(engine, chunk=args.chunk, seconds=args.seconds, folder=cache_folder() / "traps", say=_say)
    finally:
        engine.close()


def measured(engine: Engine, *, chunk: int, seconds: float, folder: Path, say: Callable[[str], None]) -> Measurement:
    """Measure, and keep it in the folder where the next start looks for it. Raises `OutOfMemoryError`."""
    say(f"measuring {engine.description} for about {seconds:g} s ...")
    measurement = measure(engine, chunk=chunk, seconds=seconds)
    keep(measurement, folder, say)
    return measurement


def _read(path: Path) -> Measurement:
    """What --json wrote. Raises ValueError."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Measurement)
        found.costs()
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path} isn't what --json wrote: {error}") from None
    return found


def _show(measurement: Measurement, console: Console) -> None:
    costs = measurement.costs()
    handler = CostHandler(costs, "paper")
    longest = measurement.points[-1].tokens
    table = Table(box=box.SIMPLE_HEAD, title=measurement.engine, title_justify="left", title_style="bold")
    table.caption = _CAPTION.format(longest, _formula(costs.recompute), _formula(costs.swap))
    table.caption_justify = "left"
    for name in ("tokens", "recompute ms", "swap ms"):
        table.add_column(name, justify="right")
    for name in _WAITS:
        table.add_column(f"in {name}")
    for tokens in _LENGTHS:
        best = [str(handler.decide(tokens, wait, crowded=True, must=False).choice) for wait in _WAITS.values()]
        times = (_time(costs.recompute(tokens)), _time(costs.swap(tokens)))
        table.add_row(f"{tokens:,}{'*' if tokens > longest else ''}", *times, *best)
    console.print(table)


def _time(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _formula(curve: Curve) -> str:
    terms = ((curve.fixed, ""), (curve.each, " n"), (curve.square, " n²"))
    return " + ".join(f"{term:.3g}{power}" for term, power in terms if term)


def _seconds(text: str) -> float:
    number = milliseconds(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def _say(line: str) -> None:
    print(f"asynclm: {line}", file=sys.stderr, flush=True)


def _fail(error: Any, status: int) -> int:
    print(f"asynclm: {error}", file=sys.stderr)
    return status
