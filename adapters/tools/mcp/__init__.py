"""Tools of MCP servers (Model Context Protocol), through the official SDK.

The SDK takes a second to load, so only `settings` is imported where the config may have no such server.
"""
