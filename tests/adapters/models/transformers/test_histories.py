"""Whatever was done to a sequence and to its neighbours, its logits are those of one fresh pass over its tokens."""

from functools import cache

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_models import VOCABULARY, Fresh, engine

from asynclm.adapters.models.local.engine import Feed, OutOfMemoryError, Pick, Sampling
from asynclm.adapters.models.transformers.engine import TransformersEngine

PAGE = 8
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40)


@cache
def fresh(kind: str) -> Fresh:
    return Fresh(kind)


@cache
def engine_of(kind: str, kv_tokens: int) -> TransformersEngine:
    """Made once, as its checks take time; each run frees what it opened."""
    return engine(kind, kv_tokens=kv_tokens, page=PAGE)


class Histories(RuleBasedStateMachine):
    """`texts` is what each sequence holds; `ready` those with a distribution; `host` those swapped out."""

    @initialize(kind=st.sampled_from(["llama", "mistral"]), kv_tokens=st.sampled_from([48, 160, 640]))
    def begin(self, kind: str, kv_tokens: int) -> None:
        self.fresh = fresh(kind)
        self.engine = engine_of(kind, kv_tokens)
        self.texts: dict[int, list[int]] = {}
        self.ready: set[int] = set()
        self.host: set[int] = set()

    def teardown(self) -> None:
        for sequence in getattr(self, "texts", {}):
            self.engine.free(sequence)
        if hasattr(self, "engine"):
            assert self.engine.memory()[:2] == (0, 0)

    @property
    def present(self) -> list[int]:
        return sorted(set(self.texts) - self.host)

    def room(self, pages: int) -> bool:
        memory = self.engine.memory()
        return pages * PAGE <= memory.limit_tokens - memory.used_tokens

    @precondition(lambda self: len(self.texts) < 6)
    @rule()
    def open(self) -> None:
        self.texts[self.engine.open(Sampling(temperature=0))] = []

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def feed(self, data: st.DataObject) -> None:
        shares = data.draw(
            st.dictionaries(st.sampled_from(self.present), st.tuples(TOKENS, st.booleans()), min_size=1, max_size=4)
        )
        feeds = [Feed(sequence, tokens, logits) for sequence, (tokens, logits) in shares.items()]
        grown = {s: self.texts[s] + list(tokens) for s, (tokens, _) in shares.items()}
        if any(len(text) > self.engine.context for text in grown.values()):
            with pytest.raises(ValueError, match="more than the context"):
                self.engine.forward(feeds)
            return
        needed = sum(pages(text) - pages(self.texts[s]) for s, text in grown.items())
        if not self.room(needed):
            with pytest.raises(OutOfMemoryError):
                self.engine.forward(feeds)
            return
        self.engine.forward(feeds)
        self.texts |= grown
        self.ready -= shares.keys()
        self.ready |= {s for s, (_, logits) in shares.items() if logits}
        self.check(s for s in shares if s in self.ready)

    @precondition(lambda self: self.present and len(self.texts) < 6)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(self.present))
        length = data.draw(st.integers(0, len(self.texts[source])))
        text = self.texts[source][:length]
        if self.room(pages(text)):
            self.texts[self.engine.fork(source, length, Sampling(temperature=0))] = text
        else:
            with pytest.raises(OutOfMemoryError):
                self.engine.fork(source, length, Sampling(temperature=0))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.texts)))
        self.engine.swap_out(sequence)
        self.host.add(sequence)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.texts)))
        if sequence in self.host and not self.room(pages(self.texts[sequence])):
            with pytest.raises(OutOfMemoryError):
                self.engine.swap_in(sequence)
        else:
            self.engine.swap_in(sequence)
            self.host.discard(sequence)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.texts)))
        length = data.draw(st.integers(0, len(self.texts[sequence])))
        self.engine.truncate(sequence, length)
        self.texts[sequence] = self.texts[sequence][:length]
        self.ready.discard(sequence)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.texts)))
        self.engine.drop(sequence)
        self.texts[sequence] = []
        self.ready.discard(sequence)
        self.host.discard(sequence)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.texts)))
        self.engine.free(sequence)
        del self.texts[sequence]
        self.ready.discard(sequence)
        self.host.discard(sequence)

    @precondition(lambda self: self.ready)
    @rule()
    def sample(self) -> None:
        sequences = sorted(self.ready)
        drawn = self.engine.sample([Pick(sequence) for sequence in sequences])
        for sequence, sampled in zip(sequences, drawn, strict=True):
            assert sampled.token == int(self.engine.logits(sequence).argmax())
        self.check(sequences)

    @invariant()
    def books_are_kept(self) -> None:
        if not hasattr(self, "engine"):
            return
        memory = self.engine.memory()
        assert memory.used_tokens == sum(pages(self.texts[s]) for s in self.present) * PAGE
        assert memory.swapped_tokens == sum(len(self.texts[s]) for s in self.host)
        for sequence, text in self.texts.items():
            assert self.engine.length(sequence) == len(text)

    def check(self, sequences: object) -> None:
        for sequence in sequences:  # type: ignore[attr-defined]
            expected = self.fresh.logits(self.texts[sequence])
            torch.testing.assert_close(self.engine.logits(sequence), expected, atol=1e-4, rtol=0)


def pages(text: list[int]) -> int:
    return -(-len(text) // PAGE)


Histories.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestHistories = Histories.TestCase
