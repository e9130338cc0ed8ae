"""The run machine under any interleaving: a model of what must hold, driven by random stories.

Whatever order text, results, failures, outside interrupts and the client's further requests come in, and wherever a
parked run goes on: every call runs,
or is sent to the client, at most once, every result is delivered exactly once and never inside a block, each prompt is
a prefix of the next, and the run always finishes.
"""

import itertools
import json
import re

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from playbook import Playbook, small

from asynclm.cml.body import parse_body
from asynclm.cml.events import Call, Interrupt
from asynclm.cml.machine import POLICIES, RunError
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.events import Scheduling
from asynclm.cml.parser import Parser
from asynclm.cml.transcript import as_prefill, as_turns

SNIPPETS = st.one_of(
    st.sampled_from(
        [
            "Some text. ",
            "\n\n",
            "[TRAP][END]",
            "[TRAP] c0, c1 [END]",
            "[CALL] f() [END]",
            "[CALL] c0 [HEAD] f() [END]",
            "[CALL] bad [HEAD] f( [END]",
            "[CALL] c9 [HEAD] f(s='[END]') [END]",
            "[CALL] k(s='[CALL] k() [END]') [END]",
            "[CALL] [HEAD] m() [END]",
            "[INTR] c0 [HEAD] 1 [END]",
            "[CALL] open [HEAD] f(",
            "[END]",
            "<think>",
            "</think>",
            "[CA",
            "[",
        ]
    ),
    st.integers(0, 6).map(lambda n: f"[CALL] c{n} [HEAD] g(x={n}) [END]\n"),
    st.integers(0, 6).map(lambda n: f"[CALL] k{n} [HEAD] k(x={n}) [END]\n"),
    st.text("[]CALTRPEND'\" ", max_size=4),
)


class AnyInterleaving(RuleBasedStateMachine):
    """Rules are what may happen next; the invariants are checked where they can be, and at the end."""

    @initialize(policy=st.sampled_from(sorted(POLICIES)), inject=st.booleans(), single=st.booleans())
    def begin(self, policy: str, inject: bool, single: bool) -> None:
        self.p = Playbook(policy, inject=inject, limits=small(max_resumes=12, max_calls=12), single=single)
        self.results: dict[int, str] = {}  # calls that returned while the run was alive: a value that is theirs alone
        self.said: list[str] = []
        self.silent: set[str] = set()
        self.unanswered: set[int] = set()  # calls for which the client came back without a result

    @precondition(lambda self: self.p.stream is not None and not self.p.paused)
    @rule(text=SNIPPETS, size=st.integers(1, 40), data=st.data())
    def write(self, text: str, size: int, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.p.open))
        for at in range(0, len(text), size):
            if stream in self.p.open and not self.p.paused:
                self.p.writes(text[at : at + size], stream=stream)

    @precondition(lambda self: self.p.stream is not None and not self.p.paused)
    @rule(reason=st.sampled_from(["stop", "length"]), data=st.data())
    def end(self, reason: str, data: st.DataObject) -> None:
        self.p.ends(reason, data.draw(st.sampled_from(self.p.open)))

    @precondition(lambda self: self.p.live)
    @rule(data=st.data())
    def result(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.p.live)))
        value = f"r{call}"
        if self.p.finish is None:
            self.results[call] = value
        self.p.returns(call, value)

    @precondition(lambda self: self.p.parked)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """The client comes back with what some of its tools returned."""
        handed = sorted(self.p.handed)
        self.resume(set(data.draw(st.lists(st.sampled_from(handed)), label="answered")))

    def resume(self, answered: set[int]) -> None:
        values = {call: f"r{call}" for call in answered}
        self.results |= values
        self.unanswered |= set(self.p.handed) - answered
        self.p.resumes(values, single=self.p.run._single)

    @precondition(lambda self: self.p.parked)
    @rule()
    def move(self) -> None:
        """Another process has it now."""
        self.p.moves()

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def result_again(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.results)))
        self.p.handle(ev.ResultArrived(call, True, '"twice"', 1.0))

    @precondition(lambda self: self.p.finish is None)
    @rule(scheduling=st.sampled_from(Scheduling))
    def speak(self, scheduling: Scheduling) -> None:
        text = f"said {len(self.said)} [END]"
        self.said.append(text)
        self.p.handle(ev.OutsideInterrupt("user", text, scheduling))
        if scheduling is Scheduling.SILENT:
            self.silent.add(text)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.3]))
    def wait(self, seconds: float) -> None:
        self.p.passes(seconds)

    @precondition(lambda self: self.p.stream is not None)
    @rule(often=st.integers(0, 9))
    def fail(self, often: int) -> None:
        if often == 0:
            self.p.fails()

    @rule(often=st.integers(0, 19))
    def leave(self, often: int) -> None:
        if often == 0:
            self.p.handle(ev.Abandoned(RunError("gone", 499)))

    def teardown(self) -> None:
        if not hasattr(self, "p"):
            return
        p = self.p
        for _ in range(200):  # whatever came before, from here on everything goes as it should: the run must finish
            if p.finish is not None:
                break
            if p.parked:
                self.resume(set(p.handed))
            elif p.stream is not None and not p.paused:
                p.ends()
            elif p.alarms and not p.live:
                p.passes(10)
            elif p.live:
                self.results[min(p.live)] = f"r{min(p.live)}"
                p.returns(min(p.live), f"r{min(p.live)}")
            else:
                raise AssertionError("the run waits for nothing")
        assert p.finish is not None, "the run does not finish"
        self.check_prompts()
        self.check_deliveries()
        self.check_history()

    def check_prompts(self) -> None:
        prompts = [*self.p.prompts, tuple(self.p.run.transcript)]
        if self.p.forks:
            # Branches can't be each other's prefixes, but what each forked from stays as it was.
            whole = tuple(self.p.run.transcript)
            ahead = {note.stream for note in self.p.notes if note.kind == "ahead"}
            adopted = {note.stream for note in self.p.notes if note.kind == "adopted"}
            for stream, prompt in enumerate(self.p.prompts):
                if stream not in ahead - adopted:  # on what would have been the transcript
                    assert whole[: len(prompt[:-1])] == prompt[:-1]
            return
        for earlier, later in itertools.pairwise(prompts):
            assert later[: len(earlier)] == earlier
            assert as_turns(later)[: len(as_turns(earlier))] == as_turns(earlier)
            assert as_prefill(later).startswith(as_prefill(earlier))

    def check_history(self) -> None:
        """The transcript is one legal history: an accepted id stands in one call, and its result comes behind it."""
        if self.p.run.live:
            return  # one stream goes on across segments, which can't be read by themselves
        calls = [note.data for note in self.p.notes if note.kind == "call" and note.data["id"] is not None]
        accepted = [call["id"] for call in calls]
        assert len(accepted) == len(set(accepted))
        written: list[str | None] = []
        bodies: dict[str | None, list[str]] = {}
        for segment in self.p.run.transcript:
            parser = Parser(interrupts=True)
            for event in parser.feed(segment.text) + parser.finish():
                if isinstance(event, Call):
                    written.append(event.id)
                    bodies.setdefault(event.id, []).append(event.body)
                elif isinstance(event, Interrupt) and event.id in accepted:
                    assert event.id in written
        rejected = [note.data["id"] for note in self.p.notes if note.kind == "rejected"]
        for id in accepted:
            assert written.count(id) <= 1 + rejected.count(id)
        for call in calls:  # what ran stands under the id that its result is told with
            if call["id"] in bodies:
                read = [parse_body(body) for body in bodies[call["id"]] if not body.endswith("(")]
                assert (call["tool"], call["arguments"]) in [(each.name, each.named) for each in read]

    def check_deliveries(self) -> None:
        transcript = self.p.run.transcript
        delivered: list[str] = []
        for segment in transcript:
            parser = Parser(interrupts=True)
            events = parser.feed(segment.text)
            if segment.author == "runtime":
                assert not parser.critical
                assert all(
                    isinstance(event, Interrupt) for event in events if not getattr(event, "text", "\n").isspace()
                )
                delivered += [event.value for event in events if isinstance(event, Interrupt)]
            else:
                assert not any(isinstance(event, Interrupt) for event in events), "a forged interrupt got in"
        # never inside a block: each stretch of the model's text that an interrupt follows is complete by itself,
        # read from where its stream began (an injectable stream goes on across interrupts)
        parser = Parser()
        for segment in transcript:
            if segment.author == "model":
                parser.feed(segment.text)
            else:
                assert not parser.critical or parser.held, "an interrupt landed inside a block"
                if not self.p.run._inject:
                    parser = Parser()
        values = [json.loads(value) for value in delivered]
        accepted = {note.call: note.data["id"] for note in self.p.notes if note.kind == "call"}
        assert sorted(self.p.executed) == sorted(set(self.p.executed))
        assert set(self.p.executed) <= set(accepted)
        assert set(self.p.sent) <= set(accepted)
        assert not set(self.p.sent) & set(self.p.executed)
        assert set(self.p.sent) >= self.unanswered
        assert all(accepted[call] is not None for call in self.p.sent)
        for value in self.results.values():
            assert values.count(value) <= 1
        unheard = [note.data["text"] for note in self.p.notes if note.kind == "unheard"]
        told = [note.data["text"] for note in self.p.notes if note.kind == "interrupt"]
        for text in self.said:  # however the run ends, nobody's words are lost without a word
            assert text in unheard or any(text.removesuffix("[END]") in each for each in told)
            assert text not in values or text not in unheard
        complete = self.p.finish.error is None and self.p.finish.reason != "length"
        bounded = any(note.kind in ("forged",) for note in self.p.notes) or any(
            note.data.get("empty") for note in self.p.notes
        )
        if complete and not bounded:
            shared = {note.call: note.data["with"] for note in self.p.notes if note.kind == "shared"}
            nothing = [value for value in values if isinstance(value, dict) and "gave no result" in str(value)]
            assert len(nothing) == sum(1 + list(shared.values()).count(call) for call in self.unanswered)
            for call, value in self.results.items():
                told = [call, *(twin for twin, first in shared.items() if first == call)]
                assert values.count(value) == sum(accepted[each] is not None for each in told)
            assert self.silent >= set(unheard)
            for text in self.said:
                assert values.count(text) + unheard.count(text) == 1
        assert "twice" not in values
        assert not re.search(r"\[(CALL|INTR|TRAP)\]", self.p.shown)


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
