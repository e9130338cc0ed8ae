"""The cache of tool results: kept in the store, the same call run once at a time over all proxies."""

from asynclm.proxy.cache.key import ANYONE, Caller
from asynclm.proxy.cache.results import ToolCache, cacheable

__all__ = ["ANYONE", "Caller", "ToolCache", "cacheable"]
