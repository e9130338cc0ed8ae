"""Measures what it costs to bring a cache back, on an engine that nobody uses yet, once for a model and a device.

Longer and longer prompts are computed, swapped out and swapped in, until the time that was given for it is used up; the
curves reach beyond. What was measured is kept on disk.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from .costs import Costs, fit
from .engine import Engine, Feed, OutOfMemoryError, Sampling

VERSION: Final = 1  # of what is measured, and of the file

_SHORTEST: Final = 16  # tokens
_TIMES: Final = 3  # that a prompt is computed, at most
_SWAPS: Final = 5  # for each of those
_POWER: Final = 1.5  # of the length, at the worst, is what the next prompt takes
_LEAST_MS: Final = 1e-4
_BENT: Final = 512  # tokens; of shorter sequences alone nobody can tell what attention's square comes to at long ones


class Point(msgspec.Struct, frozen=True):
    """What was measured of a sequence of so many tokens (milliseconds)."""

    tokens: int
    recompute: float
    swap_out: float
    swap_in: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of an engine, by its description; prompts were computed in passes of `chunk` tokens."""

    asynclm_costs: int = VERSION
    engine: str
    chunk: int
    points: list[Point]

    def costs(self) -> Costs:
        """The curves through the points; straight ones, where only short sequences were measured.

        Raises ValueError if the points can't be from any measurement.
        """
        swap = fit([(point.tokens, point.swap_out + point.swap_in) for point in self.points], 1)
        degree = 2 if any(point.tokens >= _BENT for point in self.points) else 1
        return Costs(swap, fit([(point.tokens, point.recompute) for point in self.points], degree))


def measured(
    engine: Engine,
    *,
    chunk: int,
    folder: Path,
    seconds: float = 2.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Costs | None:
    """The cost curves of an engine: those in `folder`, or else measured in about so many seconds, and kept there.

    None if the engine has no room for anything.
    """
    file = folder / f"{_key(engine, chunk)}.json"
    known = _read(file, engine, chunk)
    if known is not None:
        return known.costs()
    progress("measuring what swapping and computing a sequence again cost, once ...")
    try:
        measurement = measure(engine, chunk=chunk, seconds=seconds)
    except OutOfMemoryError:
        progress("there is no room to measure it: caches are kept as long as there is memory")
        return None
    keep(measurement, folder, progress)
    return measurement.costs()


def measure(
    engine: Engine, *, chunk: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> Measurement:
    """Measure in about that time; but the shortest length is measured however long it takes, and a second one unless
    that would take far longer: one alone says little.

    Raises `OutOfMemoryError` if not even that fits. The engine is left as it was.
    """
    memory = engine.memory()
    most = min(engine.context, memory.limit_tokens - memory.used_tokens)
    points: list[Point] = []
    began = clock()
    _compute(engine, min(_SHORTEST, most), chunk)  # what is slow only the first time
    tokens = min(_SHORTEST, most)
    while tokens:
        try:
            points.append(_measure(engine, tokens, chunk, clock, seconds / 10))
        except OutOfMemoryError:
            if points:
                break
            raise
        tokens = _next(points, most, seconds, clock() - began)
    if not points:
        raise OutOfMemoryError("there is no room for a sequence")
    return Measurement(engine=engine.description, chunk=chunk, points=points)


def _next(points: list[Point], most: int, seconds: float, gone: float) -> int:
    """The next length: in small steps while they are quick, so that there are many; then as far as there is time.

    0 if there is none.
    """
    last = points[-1]
    tokens, took = last.tokens, (last.recompute + _SWAPS * (last.swap_out + last.swap_in)) / 1000
    for step in (2,) if took < seconds / 50 else (4, 2):
        longer = min(step * tokens, most)
        may = 4 * seconds if len(points) == 1 else seconds - gone
        if longer > tokens and took * (longer / tokens) ** _POWER <= may:
            return longer
    return 0


def keep(measurement: Measurement, folder: Path, progress: Callable[[str], None] = lambda _: None) -> None:
    """Write what was measured for the next start; where that can't be done, `progress` is told."""
    file = folder / f"{_key_of(measurement.engine, measurement.chunk)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name first: what has its name is whole.
        handle, name = tempfile.mkstemp(prefix=f".{file.stem}-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(msgspec.json.format(msgspec.json.encode(measurement)))
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        progress(f"what was measured can't be kept in {folder}: {error.strerror or error}")


def _measure(engine: Engine, tokens: int, chunk: int, clock: Callable[[], float], enough: float) -> Point:
    """Of the times that it is measured, as far as there is time, the shortest counts: the rest is others' work."""
    began = clock()
    computed, out, back = math.inf, math.inf, math.inf
    for _ in range(_TIMES):
        started = clock()
        number = _begin(engine, tokens, chunk)
        computed = min(computed, clock() - started)
        try:
            for _ in range(_SWAPS):
                first = clock()
                engine.swap_out(number)
                engine.synchronize()
                second = clock()
                engine.swap_in(number)
                engine.synchronize()
                out, back = min(out, second - first), min(back, clock() - second)
        finally:
            engine.free(number)
        if clock() - began > enough:
            break
    return Point(tokens, *(max(seconds * 1000, _LEAST_MS) for seconds in (computed, out, back)))


def _compute(engine: Engine, tokens: int, chunk: int) -> None:
    if tokens:
        engine.free(_begin(engine, tokens, chunk))


def _begin(engine: Engine, tokens: int, chunk: int) -> int:
    """A sequence of any tokens, computed as the step loop computes a prompt."""
    number = engine.open(Sampling(temperature=0.0))
    try:
        for begin in range(0, tokens, chunk):
            end = min(begin + chunk, tokens)
            engine.forward([Feed(number, _some(begin, end, engine.vocabulary), end == tokens)])
        engine.synchronize()
    except BaseException:
        engine.free(number)
        raise
    return number


def _some(begin: int, end: int, vocabulary: int) -> Sequence[int]:
    return [(7 * position + 1) % vocabulary for position in range(begin, end)]


def _key(engine: Engine, chunk: int) -> str:
    return _key_of(engine.description, chunk)


def _key_of(description: str, chunk: int) -> str:
    return hashlib.sha256(f"{VERSION}\0{chunk}\0{description}".encode()).hexdigest()[:24]


def _read(file: Path, engine: Engine, chunk: int) -> Measurement | None:
    """What the file holds, if it is whole and of this engine."""
    with suppress(OSError, msgspec.DecodeError, ValueError):
        found = msgspec.json.decode(file.read_bytes(), type=Measurement)
        found.costs()
        if (found.asynclm_costs, found.engine, found.chunk) == (VERSION, engine.description, chunk):
            return found
    return None
