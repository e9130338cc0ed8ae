"""What is to be run, and running it on the virtual clock, in this process or in several."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

import msgspec

from asynclm.bench import analytic
from asynclm.bench.measure import Finished, result
from asynclm.bench.methods import ALL
from asynclm.bench.results import Result, Setting
from asynclm.bench.scenario import Scenario, at_once, one_by_one
from asynclm.bench.workloads import Case, load_cases
from asynclm.proxy.config import Limits

_SHARE: Final = 4  # cases that a process is given at a time
_WORTH_IT: Final = 80  # runs from which on further processes are


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: `count` cases of a dataset (or of them only the one named `case`), at each setting, under each
    method.

    With `gap_ms` each chain of a case is a task that arrives so long after the one before. `limits` are the proxy's.
    With `timelines` each result has its own.
    """

    dataset: str
    count: int
    seed: int
    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    case: str | None = None
    gap_ms: float | None = None
    limits: Limits = Limits()
    timelines: bool = False

    @property
    def scenario(self) -> Scenario:
        """What the client does with a case."""
        return at_once if self.gap_ms is None else functools.partial(one_by_one, gap_s=self.gap_ms / 1000)

    def cases(self, setting: Setting) -> list[Case]:
        """The cases to run. Raises `UnknownCaseError`, `MissingDatasetError`, and ValueError for too many."""
        drawn = _drawn(self.dataset, self.count, self.seed, setting.tool_ms)
        if self.case is None:
            return drawn
        found = [case for case in drawn if case.id == self.case]
        if not found:
            ids = ", ".join(case.id for case in drawn[:3])
            raise UnknownCaseError(f"no case {self.case!r} among the {len(drawn)} that were drawn: {ids}, ...")
        return found

    def runs(self) -> int:
        """How many runs it makes. Raises as `cases` does."""
        return len(self.cases(self.settings[0])) * len(self.settings) * len(self.methods)

    def result(self, finished: Finished, method: str, setting: Setting) -> Result:
        """The result of one run."""
        case = finished.workshop.case
        bounds = analytic.bounds(case.task(), case.running_ms, setting) if self.gap_ms is None else {}
        return result(finished, ALL[method], setting, bounds=bounds, with_timeline=self.timelines)

    def sorted(self, results: Sequence[Result]) -> list[Result]:
        """By setting, then by case, then by method, each as it stands in the plan."""
        ids = {case.id: number for number, case in enumerate(self.cases(self.settings[0]))}

        def place(result: Result) -> tuple[int, int, int]:
            return self.settings.index(result.setting), ids[result.case], self.methods.index(result.method)

        return sorted(results, key=place)


class UnknownCaseError(LookupError):
    """There is no such case; the message says which there are."""


def evaluate(plan: Plan, jobs: int, done: Callable[[int], None]) -> list[Result]:
    """Run the plan on the virtual clock, in up to `jobs` processes; `done` is told how many more runs have ended.

    The results are the same whatever `jobs` is.
    """
    numbers = range(len(plan.cases(plan.settings[0])))
    shares = [numbers[at : at + _SHARE] for at in numbers[::_SHARE]]
    results: list[Result] = []
    if jobs == 1 or len(shares) == 1 or plan.runs() < _WORTH_IT:
        for number in numbers:
            found = _run(plan, [number])
            results += found
            done(len(found))
        return plan.sorted(results)
    spawn = multiprocessing.get_context("spawn")  # this process may have threads
    with ProcessPoolExecutor(min(jobs, len(shares)), mp_context=spawn, initializer=_ignore_interrupts) as pool:
        try:
            for future in as_completed([pool.submit(_run, plan, share) for share in shares]):
                found = future.result()
                results += found
                done(len(found))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return plan.sorted(results)


def _run(plan: Plan, numbers: Sequence[int]) -> list[Result]:
    from asynclm.bench.virtual import run_case  # it needs the extra `bench`

    results = []
    for setting in plan.settings:
        cases = plan.cases(setting)
        for number in numbers:
            for method in plan.methods:
                finished = run_case(cases[number], ALL[method], setting, plan.scenario, plan.limits)
                results.append(plan.result(finished, method, setting))
    return results


_drawn = functools.lru_cache(maxsize=8)(load_cases)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal's group: the first one tells the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
