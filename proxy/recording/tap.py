"""Between the driver and the answer: what goes to the client also goes on tape."""

from __future__ import annotations

from asynclm.proxy.recording.recorded import CONTENT, TOOL_CALLS
from asynclm.proxy.recording.tape import Tape
from asynclm.proxy.sink import Sink


class Tap:
    """A sink in front of a sink."""

    def __init__(self, sink: Sink, tape: Tape) -> None:
        self._sent = tape.sent
        self._text = sink.text
        self._reasoning = sink.reasoning
        self._tool_call = sink.tool_call
        self.open = sink.open
        self.flush = sink.flush

    def text(self, text: str) -> None:
        """A piece of the visible answer."""
        self._sent(CONTENT, text)
        self._text(text)

    def reasoning(self, text: str, field: str) -> None:
        """A piece of the model's reasoning."""
        self._sent(field, text)
        self._reasoning(text, field)

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        """A call to a tool of the client's own."""
        self._sent(TOOL_CALLS, {"id": id, "name": name, "arguments": arguments})
        self._tool_call(id, name, arguments)
