"""Several streams at once: the policy `fork`, make before break.

At a trap each result, as it returns, opens a branch (`branch.py`) beside those that are open already, so that their
times to the first token overlap. Then:

- *Order.* Branches are folded into the transcript in the order in which they opened. When the last one has been folded,
  nothing is pending and none of them could give the whole answer, one more stream opens on the whole transcript.
- *Twins.* The same call (tool and arguments) from two branches that can't see each other is one execution, and both ids
  get the result. An id that a sibling used first is replaced by a new one.
- *Text.* The client sees one answer. A branch's text waits until the branch is folded; only where nothing else is
  going on does it go out as it comes. What a branch says before it traps is chatter, and dropped.
"""

from __future__ import annotations

from typing import Final

from .. import events as cml
from ..render import render_trap
from ..tokens import defuse
from ..transcript import Segment
from .actions import Note
from .branch import Branch
from .calls import RUNTIME
from .core import Core, Interrupt

_ALL_TOLD: Final = '{"note":"all results are in: go on, or give your answer"}'


class Branching(Core):
    """The part of a run that opens, reads and folds branches."""

    def _branch(self, stream: int) -> Branch | None:
        """The open branch whose stream that is."""
        for branch in self._branches:
            if branch.number == stream and not branch.settled:
                return branch
        return None

    def _deliverable(self) -> list[Interrupt]:
        """What is queued, but for the results of calls that stand in a branch not yet folded."""
        if not self._branches:
            return self._queue
        unfolded = {branch.number for branch in self._branches}
        return [interrupt for interrupt in self._queue if interrupt.branch not in unfolded]

    def _fork(self) -> None:
        """Open a branch that is told what is queued."""
        told = self._deliverable()
        self._queue = [interrupt for interrupt in self._queue if interrupt not in told]
        if self._streams > self._limits.max_resumes:
            self._end("length")
            return
        branch = Branch(self._streams, len(self.transcript), self._told(told, self._streams))
        self._branches.append(branch)
        self._do(Note("branch", stream=branch.number, data={"open": len(self._branches)}))
        self._request((*self.transcript, branch.told))

    def _branch_wrote(self, branch: Branch, found: list[cml.Event]) -> None:
        """Act on what was found in a branch's text."""
        for each in found:
            match each:
                case cml.Text():
                    branch.pieces.append(each.text)
                case cml.Thinking():
                    branch.pieces.append(defuse(each.text))
                case cml.Call():
                    branch.pieces.append(None)
                    if each.problem is not None:
                        branch.stream.unclosed(each.end)
                    self._branch_called(branch, each)
                case cml.Trap():
                    if not each.closed:
                        branch.stream.unclosed(each.end)
                    self._do(Note("trap", stream=branch.number, data={"names": list(each.names), "implicit": False}))
                    branch.drop_chatter()
                    self._settle(branch, each.end, trapped=True)
                case cml.Forged():
                    self._do(Note("forged", stream=branch.number))
                    self._forgeries += 1
                    self._settle(branch, each.end)
                case _:
                    branch.pieces.append(None)
            if branch.settled or self.finished:
                return
        if self._chars > self._limits.max_output_chars:
            self._end("length")
        elif self._branches == [branch] and not self._pending():
            self._show_pieces(branch)

    def _branch_called(self, branch: Branch, block: cml.Call) -> None:
        call = self._accept(block, branch.stream, branch)
        if call is None:
            return
        twin = self._calls.twin(call, branch)
        if twin is None:
            self._execute(call)
            return
        self._do(Note("shared", stream=branch.number, call=call.number, data={"with": twin.number}))
        self._calls.join(call, twin)
        if twin.result is not None and call.id is not None:
            self._queue.append(Interrupt(call.id, twin.result, branch=branch.number))

    def _branch_ended(self, branch: Branch, reason: str) -> None:
        """A branch's model stopped by itself."""
        self._do(Note("closed", stream=branch.number, data={"reason": reason}))
        self._branch_wrote(branch, branch.stream.end())
        if not branch.settled and not self.finished:
            branch.reason = reason
            self._settle(branch, None)

    def _settle(self, branch: Branch, end: int | None, *, trapped: bool = False) -> None:
        """The branch is done: fold what can be folded, and see how the run goes on."""
        branch.written = branch.stream.take(end)
        branch.settled = True
        self._close(branch.stream, trapped=trapped)
        last, saw_all = branch, False
        while self._branches and self._branches[0].settled and not self.finished:
            last = self._branches.pop(0)
            saw_all = len(self.transcript) == last.fork
            self._fold(last)
        if not self.finished:
            self._advance()
        if self.finished or self._branches or self._stream is not None or self._pending():
            return
        if last.reason is not None and saw_all:
            self._end(last.reason)
            return
        self._empty_traps += saw_all  # it had everything, and waits all the same
        if self._empty_traps > self._limits.max_empty_traps or self._forgeries > self._limits.max_forgeries:
            self._end("stop")
        elif self._streams > self._limits.max_resumes:
            self._end("length")
        elif self.transcript[-1].author == "runtime":
            self._open()
        else:
            self._go_on(RUNTIME, _ALL_TOLD)

    def _fold(self, branch: Branch) -> None:
        """Make a settled branch part of the transcript."""
        self.transcript.append(branch.told)
        text = branch.text()
        if text and text.strip() != render_trap():  # a bare trap has served its purpose
            self.transcript.append(Segment("model", text))
        self._calls.folded(branch.number, len(self.transcript))
        self._do(Note("folded", stream=branch.number))
        self._show_pieces(branch)
        self._visible.turn()

    def _show_pieces(self, branch: Branch) -> None:
        pieces, branch.pieces = branch.pieces, []
        for piece in pieces:
            if piece is None:
                self._visible.block()
            else:
                self._emit(piece)
                if self.finished:
                    return
