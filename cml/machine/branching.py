"""Several streams at once: the policy `fork`, make before break.

At a trap each result, as it returns, opens a branch (`branch.py`) beside those that are open already, so that their
times to the first token overlap. Then:

- *Order.* Branches are folded into the transcript in the order in which they opened. When the last one has been folded,
  nothing is pending and none of them could give the whole answer, one more stream opens on the whole transcript.
- *Twins.* The same call (tool and arguments) from two branches that can't see each other is one execution, and both ids
  get the result. An id that a sibling used first is replaced by a new one.
- *Text.* The client sees one answer. A branch's text waits until the branch is folded: no branch has been told
  everything, so that until then it may be chatter. What it says before it traps is chatter, and dropped. Reasoning
  goes out as it comes from the oldest of them, and waits in the others.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from .. import events as cml
from ..tokens import defuse
from ..transcript import Segment
from .actions import Note
from .ahead import Ahead, Held
from .branch import Branch
from .calls import RUNTIME
from .core import Core
from .events import Scheduling
from .interrupt import Interrupt

_WORTH_IT: Final = 5  # requests that there must be room for when the first branch is opened
_ANSWER: Final = 64  # tokens that a branch is expected to write
_ALL_TOLD: Final = '{"note":"all results are in: go on, or give your answer"}'


class Branching(Core):
    """The part of a run that opens, reads and folds branches."""

    @abstractmethod
    def _deliver(self, behind: int | None) -> None:
        """Tell what is queued to the stream that writes the transcript on, or to a new one."""

    @abstractmethod
    def _replay(self, event: Held) -> None:
        """Take an event that was held back."""

    def _branch(self, stream: int) -> Branch | None:
        """The open branch whose stream that is."""
        for branch in self._branches:
            if branch.number == stream and not branch.settled:
                return branch
        return None

    def _deliverable(self) -> list[Interrupt]:
        """What of the queue may be told now.

        Not results of calls that stand in a branch not yet folded, nor what waits for an idle model while it writes.
        """
        unfolded = {branch.number for branch in self._branches}
        writing = bool(self._branches) or not self._waiting
        return [
            interrupt
            for interrupt in self._queue
            if interrupt.branch not in unfolded and not (writing and interrupt.scheduling is Scheduling.WHEN_IDLE)
        ]

    def _take(self) -> list[Interrupt]:
        """Take what may be told now out of the queue."""
        taken = self._deliverable()
        gone = set(taken)
        self._queue = [interrupt for interrupt in self._queue if interrupt not in gone]
        return taken

    def _fork(self) -> None:
        """Open a branch that is told what is queued."""
        if self._too_many_streams():
            self._end("length")
            return
        told = self._take()
        self._drop_ahead()
        branch = Branch(self._streams, len(self.transcript), self._told(told, self._streams), told, self._now)
        self._branches.append(branch)
        self._extra.append(branch.number)
        self._do(Note("branch", stream=branch.number, data={"open": len(self._branches)}))
        self._request((*self.transcript, branch.told))

    def _open_ahead(self) -> None:
        """Open the stream that goes on if none of the open branches, which have been told all there is, does."""
        branches = self._branches
        if len(branches) < 2 or self._pending() or any(branch.fruitful for branch in branches):
            return
        if not self._affordable():
            return
        told = [branch.told for branch in branches]
        self._ahead = Ahead(self._streams, (*self.transcript, *told), self._now)
        self._extra.append(self._streams)
        self._do(Note("ahead", stream=self._streams))
        self._request(self._ahead.transcript)

    def _merge(self) -> None:
        """Give up the branches whose model has not begun: what they were told is to be told again, with the rest."""
        unbegun = self._unbegun()
        for branch in unbegun:
            self._branches.remove(branch)
            self._do(Note("merged", stream=branch.number, data={"into": self._streams}))
            self._close(branch.stream)
        self._queue[:0] = [interrupt for branch in unbegun for interrupt in branch.interrupts]
        self._fold_settled()  # which may have stood behind one of them

    def _do_without(self, branch: Branch) -> None:
        """A branch failed that has brought nothing: what it was told goes in with the rest, and the run forks no more.

        An upstream that refuses one of several requests at once may well take the next one alone.
        """
        self._alone = True
        self._drop_ahead()
        self._branches.remove(branch)
        self._queue[:0] = branch.interrupts
        self._fold_settled()
        if not self.finished:
            self._advance()

    def _unbegun(self) -> list[Branch]:
        return [branch for branch in self._branches if not branch.settled and not branch.stream.begun]

    def _affordable(self) -> bool:
        """Whether one more branch, and the stream that may be needed behind it, are within the run's bounds.

        The first one is opened only where there is room for some more: a run that forks once, and is left with chains
        out of step that it must gather, is slower than one that never forked.
        """
        if self._alone or 2 * (self._streams - self._first) > self._limits.max_resumes:
            return False  # what is left is for going on, not for going on faster
        chars = sum(len(segment.text) for segment in self.transcript)
        spent = sum(map(self._meter.tokens, self._extra))
        requests = 2 if self._extra else _WORTH_IT
        return spent + requests * (self._meter.prompt_tokens(chars) + _ANSWER) <= self._limits.max_extra_tokens

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
                    branch.fruitful = True
                    if each.problem is not None:
                        branch.stream.unclosed(each.end)
                    self._branch_called(branch, each)
                case cml.Trap():
                    if not each.closed:
                        branch.stream.unclosed(each.end)
                    self._do(Note("trap", stream=branch.number, data={"names": list(each.names), "implicit": False}))
                    branch.trapped = True
                    self._settle(branch, each.end, trapped=True)
                case cml.Forged():
                    self._do(Note("forged", stream=branch.number))
                    self._forgeries += 1
                    self._settle(branch, each.end)
                case _:
                    branch.pieces.append(None)
                    branch.fruitful = True
            if branch.settled or self.finished:
                return
        if self._chars > self._limits.max_output_chars:
            self._end("length")

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
        self._measure(branch.stream, complete=True)
        self._branch_wrote(branch, branch.stream.end())
        if not branch.settled and not self.finished:
            branch.reason = reason
            self._settle(branch, None)

    def _settle(self, branch: Branch, end: int | None, *, trapped: bool = False) -> None:
        """The branch is done: fold what can be folded, and see how the run goes on."""
        branch.written = branch.stream.take(end)
        branch.settled = True
        self._close(branch.stream, trapped=trapped)
        last, saw_all = (self._fold_settled() or [(branch, False)])[-1]
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
        elif self._too_many_streams():
            self._end("length")
        elif self._ahead is not None and self._ahead.transcript == tuple(self.transcript):
            self._adopt(self._ahead)
        else:
            self._drop_ahead()
            self._extra.append(self._streams)
            if self.transcript[-1].author != "runtime":
                self._go_on(RUNTIME, _ALL_TOLD)
            elif self._queue:
                self._deliver(None)  # all that is left is silent: here it goes along
            else:
                self._open()

    def _adopt(self, ahead: Ahead) -> None:
        """The branches brought nothing new: the stream that was opened ahead writes the transcript on."""
        self._ahead = None
        self._waiting = False
        self._named = frozenset()
        self._stream = ahead.stream
        if ahead.ended is not None:
            ahead.stream.since += self._now - ahead.ended  # it has not been writing all that time
        self._do(Note("adopted", stream=ahead.stream.number))
        for event in ahead.held:
            self._replay(event)

    def _fold_settled(self) -> list[tuple[Branch, bool]]:
        """Fold what no open branch stands before. With each: whether it saw all of the transcript that it is put to."""
        folded = []
        while self._branches and self._branches[0].settled and not self.finished:
            branch = self._branches.pop(0)
            folded.append((branch, len(self.transcript) == branch.fork))
            self._fold(branch)
        if self._branches and not self.finished:
            self._show_thoughts(self._branches[0])
        return folded

    def _show_thoughts(self, branch: Branch) -> None:
        self._actions += branch.thoughts
        branch.thoughts.clear()

    def _fold(self, branch: Branch) -> None:
        """Make a settled branch part of the transcript."""
        self.transcript.append(branch.told)
        text = branch.written
        if text.strip() and not branch.barren:
            self.transcript.append(Segment("model", text))
        self._calls.folded(branch.number, len(self.transcript))
        self._do(Note("folded", stream=branch.number))
        self._show_thoughts(branch)
        self._show_pieces(branch)
        self._visible.turn()

    def _show_pieces(self, branch: Branch) -> None:
        if branch.trapped:
            branch.drop_chatter()
        pieces, branch.pieces = branch.pieces, []
        for piece in pieces:
            if piece is None:
                self._visible.block()
            else:
                self._emit(piece)
                if self.finished:
                    return
