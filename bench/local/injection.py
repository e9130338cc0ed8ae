"""What putting an interrupt into a live sequence adds, against a fresh request with everything in its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from asynclm.adapters.models.local.engine import Engine

from .clock import Clock, WallClock
from .results import Injection
from .steps import fill, sequence, some_tokens, step_s

CONTEXTS: Final = (250, 500, 1000, 2000, 4000)
TOKENS: Final = 20  # of an interrupt
_STEPS: Final = 3


def injections(
    engine: Engine,
    contexts: Sequence[int],
    *,
    chunk: int,
    rounds: int,
    late: Callable[[], bool],
    clock: Clock | None = None,
) -> list[Injection]:
    """Measure at each length that the engine has room for, the shortest first, until it is too `late`.

    In each round one after the other, so that what else goes on in the machine meets all three alike.
    """
    clock = clock or WallClock()
    found = []
    extra = some_tokens(engine, TOKENS, 1)
    for context in contexts:
        if context + TOKENS + _STEPS > engine.context or late():
            break
        prompt = some_tokens(engine, context)
        inject, step, fresh = [], [], []
        with sequence(engine, prompt, chunk) as number:
            for _ in range(rounds):
                step += [step_s(engine, number, [7], clock) for _ in range(_STEPS)]
                engine.truncate(number, context)
                inject.append(step_s(engine, number, extra, clock))
                engine.truncate(number, context)
                fresh.append(_fresh_s(engine, [*prompt, *extra], chunk, clock))
                if late():
                    break
        found.append(
            Injection(
                context=context,
                tokens=TOKENS,
                inject_ms=min(inject) * 1000,
                step_ms=min(step) * 1000,
                fresh_ms=min(fresh) * 1000,
                rounds=len(fresh),
            )
        )
    return found


def _fresh_s(engine: Engine, tokens: Sequence[int], chunk: int, clock: Clock) -> float:
    began = clock.now()
    with sequence(engine) as number:
        last = (len(tokens) - 1) // chunk * chunk
        with clock.working():
            fill(engine, number, tokens[:last], chunk)
        step_s(engine, number, tokens[last:], clock)
        return clock.now() - began
