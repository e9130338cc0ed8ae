"""CML, the Context Markup Language, and the run machine: pure, no I/O, no clock (AsyncLM, arXiv 2412.07017, section 3).

Nothing here awaits, reads a file or a clock, or knows HTTP. It needs the standard library and msgspec.
"""
