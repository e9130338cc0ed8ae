"""From the config's `[[tools]]` to the sources of the tools."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.protocol import Source
from asynclm.adapters.tools.python import load as load_python
from asynclm.adapters.tools.sources import FixedSource, Sources
from asynclm.proxy.config import Config, Tool


def load_sources(config: Config, environ: Mapping[str, str] = os.environ) -> Sources:
    """The sources that the config names, not yet open; keys come from `environ`.

    Raises ValueError, one line that names the entry.
    """
    return Sources([_source(entry, config.base, environ) for entry in config.tools])


def _source(entry: Tool, base: Path, environ: Mapping[str, str]) -> Source:
    options = Options(**{field: getattr(entry, field) for field in Options.__struct_fields__})
    assert entry.python is not None, "the config has checked that each entry has a source"
    return FixedSource([load_python(entry.python, base, options)])
