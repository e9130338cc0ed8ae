"""What processes use, from Linux's /proc: CPU time to the nanosecond, memory, and what the rest of the machine does."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Resident memory in MiB; `pss` counts a page shared by n processes as 1/n."""

    rss: float
    pss: float


def tree(root: int) -> frozenset[int]:
    """`root` and all the processes below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        process = waiting.pop()
        if process not in found:
            found.add(process)
            waiting += children.get(process, ())
    return frozenset(found)


def cpu_s(processes: Iterable[int]) -> float:
    """Seconds of CPU that these have run, all their live threads together. One that is gone counts nothing."""
    return sum(_cpu_s(process) for process in processes)


def _cpu_s(process: int) -> float:
    try:
        threads = os.listdir(f"/proc/{process}/task")
        return sum(_first_number(f"/proc/{process}/task/{thread}/schedstat") for thread in threads) / 1e9
    except FileNotFoundError:  # the process is gone, or the kernel has no schedstat: then by ticks, mostly of 10 ms
        fields = _stat(process)
        return (int(fields[11]) + int(fields[12])) * _TICK_S if fields else 0.0


def memory(processes: Iterable[int]) -> Memory:
    """Memory of these, added up."""
    total = {"Rss:": 0, "Pss:": 0}
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in lines:
            name, _, rest = line.partition(" ")
            if name in total:
                total[name] += int(rest.split()[0])
    return Memory(total["Rss:"] / 1024, total["Pss:"] / 1024)


def machine_cpu_s() -> float:
    """Seconds of CPU that all processes of the machine have run since it started, all cores together."""
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) * _TICK_S


def _first_number(path: str) -> int:
    with open(path) as file:
        return int(file.read().split()[0])


def _stat(process: int) -> list[str]:
    """The fields of `stat` behind the process's name (state, parent, ...); none if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
