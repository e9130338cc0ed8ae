"""What a hit of the tool-result cache takes, through executor and cache (ms), on the file and on a Redis server.

    python -m asynclm.bench.cache_hits [--redis redis://localhost:6379/0] [--hits N] [--json]

Without `--redis` only the file is measured. The keys are ordinary ones of the cache and expire after an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from redis.exceptions import RedisError

from asynclm.adapters.stores import Embedded, Store, connect
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import Effect, ToolSpec
from asynclm.proxy.cache import ToolCache
from asynclm.proxy.executor import Executor

_TIMEOUT_S: Final = 5.0


class _Weather:
    spec = ToolSpec(
        name="bench_weather",
        parameters={"type": "object", "properties": {"city": {"type": "string"}}},
        effect=Effect.READ_ONLY,
        cache_s=3600.0,
        version="1",
    )

    async def run(self, arguments: dict[str, Any]) -> object:
        """A small result, at once."""
        return {"city": arguments["city"], "celsius": 4, "rain": False}


async def measure(client: Any, hits: int) -> list[float]:
    """Milliseconds of each of so many hits, in order of size. Raises RuntimeError if the store keeps nothing."""
    store = Store(client, name="bench", timeout_s=_TIMEOUT_S)
    tool = _Weather()
    executor = Executor(Toolbox([tool]), cache=ToolCache(store))
    times: list[float] = []
    try:
        for _ in range(hits + 1):
            began = time.perf_counter()
            result = await executor.execute(tool.spec, {"city": "Oslo"}, dispatched=lambda: None)
            times.append((time.perf_counter() - began) * 1000)
            if result.cache == "miss":
                times.clear()
                await asyncio.sleep(0.2)  # it is written behind the answer
        if len(times) < hits:
            raise RuntimeError("the store keeps nothing")
    finally:
        await executor.aclose()
        await store.aclose()
    return sorted(times)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--redis", metavar="URL", help="a Redis server to measure, too")
    options.add_argument("--hits", type=int, default=3000)
    options.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        stores: list[tuple[str, Any]] = [("file", lambda: Embedded(Path(folder) / "store.db"))]
        if args.redis:
            stores.append(("redis", lambda: connect(args.redis, timeout_s=_TIMEOUT_S)))
        for name, make in stores:
            try:
                times = asyncio.run(measure(make(), args.hits))
            except (RuntimeError, RedisError, OSError) as error:
                options.exit(1, f"{name}: {error}\n")
            rows.append({"store": name, "hits": len(times), **{f"p{q}_ms": _at(times, q) for q in (50, 99)}})
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{'store':8} {'hits':>6} {'p50 ms':>8} {'p99 ms':>8}")
    for row in rows:
        print(f"{row['store']:8} {row['hits']:6} {row['p50_ms']:8} {row['p99_ms']:8}")


def _at(times: list[float], percent: int) -> float:
    return round(times[min(len(times) * percent // 100, len(times) - 1)], 3)


if __name__ == "__main__":
    main()
