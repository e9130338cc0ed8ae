"""Where results, recordings and conversations are kept: Redis, or the same API in the process, behind one guard."""

from asynclm.adapters.stores.embedded import Embedded
from asynclm.adapters.stores.opening import BadURLError, check_url, connect, shown
from asynclm.adapters.stores.store import FAILURES, Counts, Store

__all__ = ["FAILURES", "BadURLError", "Counts", "Embedded", "Store", "check_url", "connect", "shown"]
