"""The operations of OpenAPI documents (3.0, 3.1) as tools."""

from asynclm.adapters.tools.openapi.source import OpenAPISource

__all__ = ["OpenAPISource"]
