"""How fast models and tools were in the runs of this process: what the policy `auto` decides by."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from asynclm.cml.machine.costs import Costs, Speed, ToolRecords
from asynclm.proxy.config import Config
from asynclm.proxy.upstreams import Route

_MAX_MODELS: Final = 256


class Speeds:
    """The speed of each model of each upstream, seeded by the upstream's `ttft_ms` and `tpot_ms`, and of the tools."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._tools = ToolRecords()
        self._models: OrderedDict[tuple[str, str], Speed] = OrderedDict()

    def costs(self, route: Route) -> Costs:
        """What a run on that route starts from, and adds to. The models used last are remembered."""
        key = (route.upstream, route.upstream_model)
        speed = self._models.get(key)
        if speed is None:
            upstream = self._config.upstreams[route.upstream]
            speed = self._models[key] = Speed(_seconds(upstream.ttft_ms), _seconds(upstream.tpot_ms))
            if len(self._models) > _MAX_MODELS:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(key)
        return Costs(speed, self._tools)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
