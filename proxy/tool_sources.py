"""From the config's `[[tools]]` to the sources of the tools."""

from __future__ import annotations

import os
from collections.abc import Mapping

from asynclm.adapters.tools.openapi import OpenAPISource
from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.protocol import Source
from asynclm.adapters.tools.python import load as load_python
from asynclm.adapters.tools.sources import FixedSource, Sources
from asynclm.proxy.config import Config, Tool


def load_sources(config: Config, environ: Mapping[str, str] = os.environ) -> Sources:
    """The sources that the config names, not yet open; keys come from `environ`.

    Raises ValueError, one line that names the entry.
    """
    return Sources([_source(entry, config, environ) for entry in config.tools])


def _source(entry: Tool, config: Config, environ: Mapping[str, str]) -> Source:
    options = Options(**{field: getattr(entry, field) for field in Options.__struct_fields__})
    if entry.mcp is not None:
        from asynclm.adapters.tools.mcp.source import McpSource  # the SDK takes a second to load

        return McpSource(
            entry.mcp,
            options,
            include=entry.include,
            exclude=entry.exclude,
            prefix=entry.prefix,
            overrides=entry.overrides,
            environ=environ,
            base=config.base,
            silence_s=config.limits.tool_timeout_s,
        )
    if entry.openapi is not None:
        return OpenAPISource(
            entry.openapi,
            http=entry.http,
            include=entry.include,
            exclude=entry.exclude,
            prefix=entry.prefix,
            options=options,
            overrides=entry.overrides,
            base=config.base,
            environ=environ,
        )
    assert entry.python is not None, "the config has checked that each entry has a source"
    return FixedSource([load_python(entry.python, config.base, options)])
