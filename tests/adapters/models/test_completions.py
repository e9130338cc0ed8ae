"""The completions APIs of self-hosted servers: events, and the tokens that are noted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.completions import (
    CompletionsDecoder,
    CompletionsDocumentDecoder,
    NativeDecoder,
    NativeDocumentDecoder,
    Thinking,
)
from asynclm.adapters.models.protocol import Ended, ReasoningDelta, TextDelta
from asynclm.adapters.models.written import Written
from asynclm.cml.usage import Usage


def known(written: Written, text: str) -> tuple[list[int], str]:
    tokens, rest, *_ = written.known(text)
    return tokens.tolist(), rest


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def native(content: str, tokens: list[int], count: int, **more: Any) -> dict[str, Any]:
    return {"index": 0, "content": content, "tokens": tokens, "stop": False, "tokens_predicted": count, **more}


def last(kind: str, **more: Any) -> dict[str, Any]:
    return {"content": "", "tokens": [], "stop": True, "stop_type": kind, "tokens_predicted": 3, **more}


def piece(text: str, ids: list[int] | None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "token_ids": ids, "finish_reason": reason}]}


@pytest.mark.parametrize(("kind", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_an_answer_of_llama_cpp(kind: str, reason: str) -> None:
    written = Written([0])
    decoder = NativeDecoder(1000, written)
    counted = {"tokens_evaluated": 9, "timings": {"cache_n": 7, "prompt_n": 2}}
    events = decoder.feed(sse(native("a", [1], 1), native("", [2], 2), native("PX", [3], 3), last(kind, **counted)))
    assert events == [TextDelta("a"), TextDelta("PX"), Ended(reason), Usage(9, 3, 7)]
    assert (decoder.ended, decoder.done, decoder.failure, written.ended) == (True, True, None, True)
    # The text that was held back counts with the one that came behind it.
    assert known(written, "aPX!") == ([0, 1], "PX!")
    assert known(written, "aP") == ([0], "aP")


def test_a_character_of_several_tokens_of_which_llama_cpp_gives_the_last() -> None:
    written = Written([0])
    decoder = NativeDecoder(1000, written)
    events = decoder.feed(sse(native("a", [1], 1), native("b", [2], 2), native("🦊", [5], 5), native("c", [6], 6)))
    assert events == [TextDelta("a"), TextDelta("b"), TextDelta("🦊"), TextDelta("c")]
    assert known(written, "ab🦊c") == ([0, 1], "b🦊c")


@pytest.mark.parametrize("ids", [None, []])
def test_servers_that_give_no_tokens(ids: list[int] | None) -> None:
    for decoder, event in (
        (NativeDecoder(1000, native_written := Written([0])), native("a", ids, 1)),  # type: ignore[arg-type]
        (CompletionsDecoder(1000, written := Written([0])), piece("a", ids)),
    ):
        assert decoder.feed(sse(event)) == [TextDelta("a")]
    assert known(native_written, "a") == known(written, "a") == ([0], "a")


def test_an_answer_of_vllm() -> None:
    written = Written([0])
    decoder = CompletionsDecoder(1000, written)
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 7}}
    first = piece("ab", [1, 2])
    first["choices"][0]["prompt_token_ids"] = [0]
    events = decoder.feed(sse(first, piece("", [3]), piece("c", [4]), piece("", [], "length"), {"choices": []}))
    events += decoder.feed(sse({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    assert events == [TextDelta("ab"), TextDelta("c"), Ended("length"), Usage(9, 4, 7)]
    assert decoder.done
    assert known(written, "abc.") == ([0, 1, 2], "c.")


def test_other_choices_are_left_out() -> None:
    decoder = CompletionsDecoder(1000, Written([0]))
    other = {"choices": [{"index": 1, "text": "no", "finish_reason": "stop"}]}
    assert decoder.feed(sse(other, piece("a", [1]))) == [TextDelta("a")]
    assert not decoder.ended


def test_reasoning_that_the_prompt_opened() -> None:
    for make, say in (
        (NativeDecoder, lambda text, n: native(text, [n], n)),
        (CompletionsDecoder, lambda text, n: piece(text, [n])),
    ):
        written = Written([0], opened_thinking=True)
        decoder = make(1000, written)
        events = decoder.feed(sse(*(say(text, n) for n, text in enumerate(["Let", " me</th", "ink>", "Yes", "."], 1))))
        assert events == [ReasoningDelta("Let"), ReasoningDelta(" me"), TextDelta("Yes"), TextDelta(".")]
        assert known(written, "Yes.") == ([0, 1, 2, 3, 4], ".")


@pytest.mark.parametrize(
    ("opened", "text", "reasoning", "answer"),
    [
        (False, "Hello <think>x</think>", "", "Hello <think>x</think>"),
        (False, "\n<think>x</think>\n\nHi", "x", "\n\nHi"),
        (False, "<thin", "", "<thin"),
        (False, "<<think>", "", "<<think>"),
        (False, "<think>x</thin", "x</thin", ""),
        (True, "x</think></think>y", "x", "</think>y"),
        (True, "", "", ""),
        (True, "a<b</</think>c", "a<b</", "c"),
    ],
)
@given(data=st.data())
def test_thinking_is_told_from_the_answer_however_it_comes(
    opened: bool, text: str, reasoning: str, answer: str, data: st.DataObject
) -> None:
    thinking = Thinking(opened)
    said = ["", ""]
    at = 0
    while at < len(text):
        size = data.draw(st.integers(1, 5))
        for n, more in enumerate(thinking.feed(text[at : at + size])):
            said[n] += more
        at += size
    for n, more in enumerate(thinking.finish()):
        said[n] += more
    assert said == [reasoning, answer]


@pytest.mark.parametrize("make", [NativeDecoder, CompletionsDecoder])
def test_failures(make: Any) -> None:
    decoder = make(1000, Written([0]))
    assert decoder.feed(sse({"error": {"code": 500, "message": "out of slots"}})) == []
    assert (decoder.failure.status, decoder.failure.message) == (500, "out of slots")
    decoder = make(1000, Written([0]))
    decoder.feed(b"data: {nothing}\n\n")
    assert decoder.failure.code == "upstream_malformed"
    decoder = make(1000, Written([0]))
    assert decoder.finish() == []
    assert decoder.failure.code == "upstream_disconnected"


def test_answers_that_are_not_streamed() -> None:
    whole = NativeDocumentDecoder(1000, Written([0]))
    assert whole.feed(json.dumps(last("eos") | {"content": "Hi"}).encode()) == []
    assert whole.finish() == [TextDelta("Hi"), Ended("stop"), Usage(0, 3)]
    document = CompletionsDocumentDecoder(1000, Written([0]))
    document.feed(json.dumps(piece("Hi", [1], "length") | {"usage": {"prompt_tokens": 2}}).encode())
    assert document.finish() == [TextDelta("Hi"), Ended("length"), Usage(2)]
    for broken in (NativeDocumentDecoder(1000, Written([0])), CompletionsDocumentDecoder(1000, Written([0]))):
        broken.feed(b"{}")
        assert broken.finish() == []
        assert broken.failure is not None
        assert broken.failure.code == "upstream_malformed"
