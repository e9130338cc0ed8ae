"""Decoding an answer, apart from any API's own format: events out of bytes, what an early end means, failures."""

from __future__ import annotations

from abc import ABC, abstractmethod

from asynclm.adapters.models import errors
from asynclm.adapters.models.protocol import Ended, ModelError, StreamEvent
from asynclm.adapters.models.sse import Event, Splitter
from asynclm.cml.usage import Usage


class EventDecoder(ABC):
    """Decodes a streamed answer (`stream.Decoder`). `max_event_bytes` bounds the memory that one event may take.

    An API's decoder says what an event means (`read`), calls `stop` when the model has stopped and `complete` when
    nothing more is to come. Usage goes out once, last, however often it was sent.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self.ended = False
        self.done = False
        self.failure: ModelError | None = None
        self._splitter = Splitter(max_event_bytes)

    @abstractmethod
    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append what one event says. Raises `ModelError` for an error event and for one that can't be read."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """The tokens, as far as they were sent."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Take the next bytes and return what they say."""
        events: list[StreamEvent] = []
        try:
            for event in self._splitter.feed(data):
                self._take(event, events)
                if self.done:
                    return events
            if self._splitter.overflow:
                self.failure = errors.malformed("an event that is too large")
        except ModelError as error:
            self.failure = error
        return events

    def finish(self) -> list[StreamEvent]:
        """The bytes have ended: proper if the model had stopped, a failure if it had not."""
        events: list[StreamEvent] = []
        rest = self._splitter.finish()
        try:
            if rest is not None:
                self._take(rest, events)
        except ModelError as error:
            # An event that can't be read because it was cut in the middle says no more than the cut does.
            if error.code != errors.MALFORMED:
                self.failure = error
                return events
        if not self.ended:
            self.failure = errors.disconnected()
        elif not self.done:
            self.complete(events)
        return events

    def _take(self, event: Event, events: list[StreamEvent]) -> None:
        if event.name == b"error":
            raise self._error(event.data)
        data = event.data
        if data and not data.isspace():
            self.read(data, events)

    def _error(self, data: bytes) -> ModelError:
        try:
            self.read(data, [])
        except ModelError as error:
            if error.code != errors.MALFORMED:
                return error
        return errors.from_event(data)

    def stop(self, reason: str, events: list[StreamEvent]) -> None:
        """The model has stopped."""
        if not self.ended:
            self.ended = True
            events.append(Ended(reason))

    def complete(self, events: list[StreamEvent]) -> None:
        """The answer is complete; if nobody said that the model had stopped, it has now."""
        self.stop("stop", events)
        self.done = True
        usage = self.usage()
        if usage is not None:
            events.append(usage)


class DocumentDecoder(ABC):
    """Decodes an answer that came whole, as one JSON document, though a stream was asked for (`stream.Decoder`)."""

    def __init__(self, max_bytes: int) -> None:
        self.ended = False
        self.done = False
        self.failure: ModelError | None = None
        self._max_bytes = max_bytes
        self._data = bytearray()

    @abstractmethod
    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append everything that the document says. Raises `ModelError`."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Take the next bytes; nothing can be said before the end."""
        self._data += data
        if len(self._data) > self._max_bytes:
            self.failure = errors.malformed("an answer that is too large")
        return []

    def finish(self) -> list[StreamEvent]:
        """The bytes have ended: the whole answer in one batch."""
        events: list[StreamEvent] = []
        try:
            self.read(bytes(self._data), events)
            self.ended = self.done = True
        except ModelError as error:
            self.failure = error
        return events
