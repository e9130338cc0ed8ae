"""Decoding from static tensors. A capture is recorded on the CPU (see `flash_on_cpu`): what a graph would compute again
is computed again, and nothing else. The graphs themselves are for `test_cuda`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import pytest
import torch
from flash_on_cpu import Recorded, Waiting, flash_on_cpu
from tiny_models import CONTEXT, CPU, VOCABULARY, Fresh, engine, stock

from asynclm.adapters.models.local.engine import Feed, OutOfMemoryError, Pick, Sampling
from asynclm.adapters.models.transformers import build
from asynclm.adapters.models.transformers.arena import Arena
from asynclm.adapters.models.transformers.check import decoding_works, replace_attention, varlen_works
from asynclm.adapters.models.transformers.decoding import Capture, Decoder
from asynclm.adapters.models.transformers.engine import TransformersEngine

GREEDY = Sampling(temperature=0)
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
PAGE = 16


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_on_cpu(monkeypatch)


class Static:
    """An engine that decodes from static tensors, and what it is made of."""

    def __init__(
        self,
        kind: str = "llama",
        capture: Capture | None = None,
        *,
        kv_tokens: int = 2048,
        page: int = PAGE,
        most_rows: int = 16,
        first_width: int = 64,
        varlen: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = stock(kind).to(dtype)
        layers = replace_attention(self.model, vocabulary=VOCABULARY, dtype=dtype, device=CPU)
        self.arena = Arena(layers, tokens=kv_tokens, page=page, dtype=dtype, device=CPU)
        self.recorded = Recorded()
        self.decoder = Decoder(
            self.model,
            self.arena,
            capture or self.recorded,
            context=CONTEXT,
            vocabulary=VOCABULARY,
            dtype=dtype,
            most_rows=most_rows,
            first_width=first_width,
        )
        self.engine = TransformersEngine(
            self.model,
            self.arena,
            context=CONTEXT,
            vocabulary=VOCABULARY,
            description="",
            varlen=varlen,
            decoder=self.decoder,
        )


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def same(one: TransformersEngine, other: TransformersEngine, sequence: int) -> None:
    torch.testing.assert_close(one.logits(sequence), other.logits(sequence), atol=1e-4, rtol=1e-4)


def both(one: TransformersEngine, other: TransformersEngine, feeds: list[Feed]) -> None:
    one.forward(feeds)
    other.forward(feeds)
    for feed in feeds:
        if feed.logits:
            same(one, other, feed.sequence)


def opened(count: int, *engines: TransformersEngine) -> list[int]:
    """The same sequences in each, of lengths that differ."""
    sequences = [[each.open(GREEDY) for _ in range(count)] for each in engines]
    assert all(numbers == sequences[0] for numbers in sequences)
    for number in sequences[0]:
        for each in engines:
            each.forward([Feed(number, tokens(1 + number * 11 % 50, number))])
    return sequences[0]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_size_have_the_logits_of_passes_that_are_not_captured(kind: str) -> None:
    static, eager = Static(kind), engine(kind)
    sequences = opened(9, static.engine, eager)
    for count in (9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 3):
        fed = sequences[:count] if count % 2 else sequences[-count:]
        both(static.engine, eager, [Feed(s, tokens(1, s + count)) for s in fed])
    # Rows are 1, 2, 4, 8 or 16, and only a few passes need a wider table.
    assert 5 <= static.recorded.captured <= 7
    assert static.recorded.replayed == 12


@pytest.mark.parametrize("seed", range(4))
def test_moves_forks_swaps_and_injections_in_between_change_nothing(seed: int) -> None:
    chance = random.Random(seed)
    kind = "mistral" if seed % 2 else "llama"
    # In float64: over so many tokens the rounding of float32 would add up.
    static = Static(kind, kv_tokens=512, dtype=torch.float64)
    eager = Static(kind, kv_tokens=512, dtype=torch.float64, varlen=False, most_rows=0).engine
    engines = (static.engine, eager)
    present = set(opened(4, *engines))
    swapped: set[int] = set()
    ready = set(present)
    starts: dict[int, int] = {}
    moved = 0

    def all_do(action: Callable[[TransformersEngine], int | None]) -> int | None:
        """What both do, or that neither has room for it (0)."""
        results = []
        for each in engines:
            try:
                results.append(action(each))
            except OutOfMemoryError:
                results.append(0)
        assert results[0] == results[1]
        return results[0]

    for step in range(120):
        act = chance.random()
        some = chance.sample(sorted(present), chance.randint(1, len(present))) if present else []
        if act < 0.6 and some:
            feeds = [Feed(s, tokens(1, step + s)) for s in some if eager.length(s) < CONTEXT]
        elif act < 0.7 and some:
            feeds = [
                Feed(s, tokens(chance.randint(1, 30), step + s), chance.random() < 0.7)
                for s in some
                if eager.length(s) < 200
            ]
        else:
            feeds = []
        if feeds:
            if all_do(lambda each, feeds=feeds: each.forward(feeds)) is None:  # type: ignore[misc]
                ready -= {feed.sequence for feed in feeds}
                ready |= {feed.sequence for feed in feeds if feed.logits}
        elif act < 0.8 and present:
            source = chance.choice(sorted(present))
            length = chance.randint(0, eager.length(source))
            made = all_do(lambda each, s=source, n=length: each.fork(s, n, GREEDY))  # type: ignore[misc]
            if made:
                present.add(made)
        elif act < 0.9 and present:
            one = chance.choice(sorted(present))
            all_do(lambda each, one=one: each.swap_out(one))  # type: ignore[misc]
            present.discard(one)
            swapped.add(one)
        elif swapped and act < 0.97:
            one = chance.choice(sorted(swapped))
            if all_do(lambda each, one=one: each.swap_in(one)) is None:  # type: ignore[misc]
                present.add(one)
                swapped.discard(one)
        elif present | swapped:
            one = chance.choice(sorted(present | swapped))
            all_do(lambda each, one=one: each.free(one))  # type: ignore[misc]
            for group in (present, swapped, ready):
                group.discard(one)
        # Every distribution that was kept, however long ago, is still there.
        for sequence in ready:
            same(static.engine, eager, sequence)
        for sequence in present:
            start = static.arena.start(sequence)
            moved += starts.get(sequence, start) != start
            starts[sequence] = start
    assert moved
    assert static.recorded.replayed > 40
    assert static.decoder.works


def test_padding_writes_nothing_but_the_trash_page_and_reads_nothing_else() -> None:
    static, eager = Static(), engine()
    for tensor in (*static.arena.keys.values(), *static.arena.values.values()):
        tensor.fill_(float("nan"))  # what lies around isn't looked at
    sequences = opened(6, static.engine, eager)
    for fed in (sequences[:3], sequences[1:6], sequences[3:6]):
        before = [tensor.clone() for tensor in static.arena.keys.values()]
        at = [static.arena.start(s) + static.engine.length(s) for s in fed]
        both(static.engine, eager, [Feed(s, [s + 5]) for s in fed])
        for old, new in zip(before, static.arena.keys.values(), strict=True):
            differ = (old.nan_to_num(77.0) != new.nan_to_num(77.0)).flatten(1).any(1).nonzero().flatten().tolist()
            assert set(differ) - {static.arena.trash} == set(at)
    assert static.arena.memory().limit_tokens == 2048


def test_a_distribution_that_waits_is_kept_while_others_go_on() -> None:
    static = Static()
    waiting, *others = opened(5, static.engine)
    static.engine.forward([Feed(s, [9]) for s in (waiting, *others)])
    kept, drawn = static.engine.logits(waiting).clone(), static.engine.sample([Pick(waiting)])
    for count in (4, 1, 2, 4):
        static.engine.forward([Feed(s, [12]) for s in others[:count]])
        assert torch.equal(static.engine.logits(waiting), kept)
        assert static.engine.sample([Pick(waiting)]) == drawn
    assert static.engine.logits(waiting).untyped_storage().nbytes() == VOCABULARY * 4


def test_only_passes_of_single_tokens_that_want_their_logits_are_taken() -> None:
    static, fresh = Static(most_rows=4), Fresh("llama")
    one, two, *more = opened(6, static.engine)
    static.engine.forward([Feed(one, [4]), Feed(two, [5, 6])])
    static.engine.forward([Feed(one, [4]), Feed(two, [5], logits=False)])
    static.engine.forward([Feed(s, [7]) for s in (one, two, *more)])  # more than there are rows
    assert static.recorded.captured == 0
    torch.testing.assert_close(
        static.engine.logits(one), fresh.logits([*tokens(1 + 11, 1), 4, 4, 7]), atol=1e-4, rtol=0
    )
    static.engine.forward([Feed(s, [7]) for s in more])
    assert static.recorded.captured == 1


def test_a_sequence_may_grow_to_the_context() -> None:
    static, eager = Static(first_width=32), engine()
    long, short = static.engine.open(GREEDY), static.engine.open(GREEDY)
    assert (eager.open(GREEDY), eager.open(GREEDY)) == (long, short)
    both(static.engine, eager, [Feed(long, tokens(20)), Feed(short, tokens(3))])
    while static.engine.length(long) < CONTEXT:
        both(
            static.engine,
            eager,
            [Feed(long, tokens(1, static.engine.length(long))), Feed(short, [8])][
                : 1 + (static.engine.length(short) < 9)
            ],
        )
        room = CONTEXT - static.engine.length(long)
        if room > 40:
            both(static.engine, eager, [Feed(long, tokens(37, room))])
    assert static.decoder.works
    # 32, 64, 128, 256 and 512 tokens
    assert {width * PAGE for _, width in static.decoder._shapes} == {32, 64, 128, 256, 512}


def test_the_first_shapes_are_captured_before_anybody_waits() -> None:
    static, eager = Static(), engine()
    static.decoder.prepare()
    assert static.recorded.captured == 5
    sequences = opened(7, static.engine, eager)
    for count in (7, 1, 3, 2):
        both(static.engine, eager, [Feed(s, [count]) for s in sequences[:count]])
    assert static.recorded.captured == 5


@pytest.mark.parametrize("when", ["captured", "replayed"])
def test_what_cannot_be_captured_is_computed_without(when: str, caplog: pytest.LogCaptureFixture) -> None:
    attempts = []

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        attempts.append(run)
        if when == "captured":
            fail()
        run()
        return fail

    static, eager = Static(capture=capture), engine()
    with caplog.at_level(logging.WARNING):
        sequences = opened(3, static.engine, eager)
        for _ in range(3):
            both(static.engine, eager, [Feed(s, [6]) for s in sequences])
    assert len(attempts) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "decoding without CUDA graphs, which is slower: OutOfMemoryError: CUDA out of memory. Tried to allocate much"
    ]


def test_a_model_that_looks_at_numbers_is_computed_without(caplog: pytest.LogCaptureFixture) -> None:
    static, eager = Static(), engine()

    def look(_module: object, inputs: tuple[torch.Tensor]) -> None:
        assert float(inputs[0].sum()) < 1e9

    static.model.model.layers[1].register_forward_pre_hook(look)
    sequences = opened(3, static.engine, eager)
    both(static.engine, eager, [Feed(s, [6]) for s in sequences])
    assert not static.decoder.works
    assert "waits for the device" in caplog.text


def test_a_replay_that_computes_something_else_is_found_when_it_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        run()
        return lambda: None

    static, eager = Static(capture=capture), engine()
    sequences = opened(2, static.engine, eager)
    both(static.engine, eager, [Feed(s, [6]) for s in sequences])
    assert not static.decoder.works
    assert "aren't those that it was captured from" in caplog.text


def works(model: object, capture: Capture) -> bool:
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)
    return decoding_works(model, layers, capture, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_when_a_model_is_loaded_lets_what_works_pass(kind: str) -> None:
    recorded = Recorded()
    assert works(stock(kind), recorded)
    assert recorded.captured == 3
    assert recorded.replayed == 6


def test_the_check_finds_replays_that_do_not_follow_their_inputs(caplog: pytest.LogCaptureFixture) -> None:
    """A graph that kept a number of the run that it was captured from is right the first time."""

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        again = Recorded()(run)
        left = [again]
        return lambda: left.pop()() if left else None

    assert not works(stock("llama"), capture)
    assert "the model's output is another one with them" in caplog.text


def test_the_check_survives_whatever_goes_wrong(caplog: pytest.LogCaptureFixture) -> None:
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        raise NotImplementedError("no graphs in this build")

    assert not works(stock("llama"), capture)
    assert caplog.text.count("decoding without CUDA graphs") == 1


def test_what_is_built_for_a_gpu_is_checked_then_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Recorded] = []

    def graphs(_device: torch.device) -> Recorded:
        recorded.append(Recorded())
        return recorded[-1]

    monkeypatch.setattr(build, "CudaGraphs", graphs)
    model = stock("llama")
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)
    assert build._try_decoding(model, layers, VOCABULARY, torch.float32, CPU)
    arena = Arena(layers, tokens=1024, page=256, dtype=torch.float32, device=CPU)
    assert build._decoder(model, arena, VOCABULARY, torch.float32, CPU).works
    assert [each.captured for each in recorded] == [3, 5]


def test_a_graph_is_never_replayed_on_another_arena() -> None:
    static = Static()
    [sequence] = opened(1, static.engine)
    static.engine.forward([Feed(sequence, [4])])
    static.arena.keys[0] = static.arena.keys[0].clone()
    with pytest.raises(AssertionError, match="old tensors"):
        static.engine.forward([Feed(sequence, [4])])
    assert static.engine.length(sequence) == 1 + 11 + 1


def test_closing_lets_go_of_the_graphs() -> None:
    static = Static()
    [sequence] = opened(1, static.engine)
    static.engine.forward([Feed(sequence, [4])])
    static.engine.close()
    assert static.engine._decoder is None


@pytest.mark.parametrize("kind", KINDS)
def test_flash_attention_on_pages_is_called_as_it_wants_to_be(kind: str) -> None:
    """Passes of prompts, injections and decoded tokens together."""
    model = stock(kind)
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)
    assert varlen_works(model, layers, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_waits_for_nothing(kind: str) -> None:
    """It looks at no number on the device, whether it is captured or not, and whatever has to be moved for it."""
    static = Static(kind, kv_tokens=256, first_width=256)
    static.decoder.prepare()  # to capture does
    sequences = [static.engine.open(Sampling(logprobs=0)) for _ in range(3)]
    starts = set()
    with Waiting() as waiting:
        for step in range(20):
            static.engine.forward([Feed(s, tokens(1 + (step % 3) * s, s)) for s in sequences])
            starts.add(tuple(map(static.arena.start, sequences)))
            static.engine.free(static.engine.fork(sequences[1], 1, GREEDY))
        assert waiting.operations == []
        static.engine.sample([Pick(sequences[0])])
        assert waiting.operations  # sampling does
    assert len(starts) > 1
