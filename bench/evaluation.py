"""Runs all cases under all methods at all settings, in this process or in several."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

import msgspec

from asynclm.bench.methods import METHODS
from asynclm.bench.results import Result, Setting
from asynclm.bench.workloads import Case, load_cases

_SHARE: Final = 4  # cases that a process is given at a time
_WORTH_IT: Final = 100  # runs from which on further processes are


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: `count` cases of a dataset (or of them only the one named `case`), at each setting, under each
    method. With `timelines` each result has its own.
    """

    dataset: str
    count: int
    seed: int
    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    case: str | None = None
    timelines: bool = False


class UnknownCaseError(LookupError):
    """There is no such case; the message says which there are."""


def case_ids(plan: Plan) -> list[str]:
    """The cases to run. Raises `UnknownCaseError`, `MissingDatasetError`, and ValueError for too many."""
    ids = [case.id for case in _cases(plan, plan.settings[0].tool_ms)]
    if plan.case is None:
        return ids
    if plan.case not in ids:
        raise UnknownCaseError(f"no case {plan.case!r} among the {len(ids)} drawn: they are {ids[0]} to {ids[-1]}")
    return [plan.case]


def runs(plan: Plan) -> int:
    """How many runs that makes."""
    return len(case_ids(plan)) * len(plan.settings) * len(plan.methods)


def evaluate(plan: Plan, jobs: int, done: Callable[[int], None]) -> list[Result]:
    """Run the plan on the virtual clock, in up to `jobs` processes; `done` is told how many more runs have ended.

    The results stand in the same order, and are the same, whatever `jobs` is.
    """
    ids = case_ids(plan)
    shares = [ids[at : at + _SHARE] for at in range(0, len(ids), _SHARE)]
    found: dict[str, list[Result]] = {}
    if jobs == 1 or len(shares) == 1 or runs(plan) < _WORTH_IT:
        for id in ids:
            found[id] = _run(plan, [id])
            done(len(found[id]))
    else:
        spawn = multiprocessing.get_context("spawn")  # this process may have threads
        with ProcessPoolExecutor(min(jobs, len(shares)), mp_context=spawn, initializer=_ignore_interrupts) as pool:
            try:
                futures = [pool.submit(_run, plan, share) for share in shares]
                for future in as_completed(futures):
                    results = future.result()
                    for result in results:
                        found.setdefault(result.case, []).append(result)
                    done(len(results))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    results = [result for id in ids for result in found[id]]
    return sorted(results, key=lambda result: plan.settings.index(result.setting))


def _run(plan: Plan, ids: Sequence[str]) -> list[Result]:
    from asynclm.bench.virtual import run_case  # it needs the extra `bench`

    results = []
    for setting in plan.settings:
        cases = {case.id: case for case in _cases(plan, setting.tool_ms)}
        for id in ids:
            results += [
                run_case(cases[id], METHODS[method], setting, with_timeline=plan.timelines) for method in plan.methods
            ]
    return results


def _cases(plan: Plan, tool_ms: float) -> list[Case]:
    return _loaded(plan.dataset, plan.count, plan.seed, tool_ms)


_loaded = functools.lru_cache(maxsize=8)(load_cases)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal's group: the first one tells the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
