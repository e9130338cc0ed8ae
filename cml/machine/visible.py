"""The answer as the client sees it: the model's text without its blocks, bounded as the client asked.

- Taking blocks out leaves no piles of blank lines: of the white space around them, the widest break stays (at most one
  blank line), and none where the answer begins or ends.
- `stop` and `max_tokens` of the client bound this text, over all streams of the run; what the model writes in blocks
  doesn't count. A piece of text counts as one token if it is short (16 characters), and by 4 characters a token
  otherwise.
"""

from __future__ import annotations

LONG_PIECE = 16
CHARS_A_TOKEN = 4
_SENTENCE_ENDS = frozenset(".!?:;…。'\")]}")


class Visible:
    """Text events in, text for the client out. White space at the end is held back until something follows it."""

    __slots__ = ("_budget", "_gap", "_gaps", "_held", "_last", "_longest", "_stop", "finished")

    def __init__(self, stop: tuple[str, ...] = (), max_tokens: int | None = None) -> None:
        self.finished: str | None = None  # "stop" or "length" once a bound of the client's is reached
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._budget = max_tokens
        self._held = ""  # may be the beginning of a stop string
        self._gap = ""  # white space since the last visible character, or the last block
        self._gaps: list[str] | None = None  # the white space before each block since then; None without a block
        self._last = ""  # the last visible character

    def text(self, text: str) -> str:
        """Take a piece of the model's text; return what can be shown now."""
        if self._gaps is None and not self._gap and not text[-1:].isspace():
            out = text
        else:
            body = text.rstrip()
            if not body:
                self._gap += text
                return ""
            whole = self._gap + body
            self._gap = text[len(body) :]
            if self._gaps is not None:
                lead = len(whole) - len(whole.lstrip())
                whole = self._joint([*self._gaps, whole[:lead]]) + whole[lead:]
                self._gaps = None
            out = whole
        if self._budget is not None:
            out = self._bounded(out)
        if out:
            self._last = out[-1]
        return self._until_stop(out) if self._stop else out

    def block(self) -> None:
        """A block stood here and was taken out."""
        if self._gaps is None:
            self._gaps = []
        self._gaps.append(self._gap)
        self._gap = ""

    def turn(self) -> None:
        """The model begins anew here, after a wait: a new paragraph, unless it waited in mid-sentence."""
        self.block()
        if self._gaps is not None:
            self._gaps.append("\n\n" if self._last in _SENTENCE_ENDS else " ")

    def end(self) -> str:
        """The answer ends here: return what was held back."""
        if self.finished is not None:
            return ""
        gap = "" if self._gaps is not None else self._gap
        self._gap = ""
        out = self._until_stop(gap) if self._stop else gap
        if self.finished is None:
            out += self._held
        return out

    def _joint(self, gaps: list[str]) -> str:
        """The white space to leave where blocks stood, given what was before, between and behind them."""
        if not self._last:
            return ""
        newlines = max(gap.count("\n") for gap in gaps)
        if newlines:
            _, newline, indent = gaps[-1].rpartition("\n")
            return "\n" * min(newlines, 2) + (indent if newline else "")
        return " " if any(gaps) else ""

    def _bounded(self, text: str) -> str:
        assert self._budget is not None
        tokens = 1 if len(text) <= LONG_PIECE else -(-len(text) // CHARS_A_TOKEN)
        if tokens > self._budget:
            text = text[: self._budget * CHARS_A_TOKEN] if self._budget and len(text) > LONG_PIECE else ""
            self.finished = "length"
            self._budget = 0
        else:
            self._budget -= tokens
        return text

    def _until_stop(self, text: str) -> str:
        text = self._held + text
        # The string that is complete first ends the answer, as it would if the text came a character at a time.
        found = min(((at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self._held = ""
            self.finished = "stop"
            return text[: found[1]]
        keep = len(text)
        if self.finished is None:
            for at in range(max(0, keep - self._longest + 1), keep):
                if any(stop.startswith(text[at:]) for stop in self._stop):
                    keep = at
                    break
        self._held = text[keep:]
        return text[:keep]
