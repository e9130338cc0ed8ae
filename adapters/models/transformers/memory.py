"""How much memory is free: of the machine (within its container's limit), or of a CUDA device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated now on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_host(), _container())


def _host() -> int:
    """Memory that Linux could hand out without swapping; elsewhere half of what is installed."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container() -> int:
    """What is left below the limit of this control group (cgroup v2, or v1); endless without one."""
    for limit, usage in (
        (_CGROUP / "memory.max", _CGROUP / "memory.current"),
        (_CGROUP / "memory/memory.limit_in_bytes", _CGROUP / "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(int(limit.read_text()) - int(usage.read_text()), 0)
        except (OSError, ValueError):  # no such group, or the limit is the word "max"
            continue
    return 1 << 62
