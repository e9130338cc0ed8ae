"""`prefill = "tokens"` with servers that speak like llama.cpp, vLLM and SGLang: what they are asked, and what for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from loopback import collect, collect_failing
from token_servers import PATHS, TokenUpstream

from asynclm.adapters.models import Ended, ModelError, OpenAIModel, ReasoningDelta, Request, TextDelta
from asynclm.cml.render import STOP
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage

KINDS = list(PATHS)
MESSAGES = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "How many?"}]
TOLD = Segment("runtime", "[INTR] a [HEAD] 17 [END]")
# Not what the tokenizer would make of that text.
CALL = ["I", " lo", "ok", ". [CA", "LL] a [HE", "AD] f() [E", "ND]", "\n[TR", "AP][", "END]", "never"]
CALL_TEXT = "".join(CALL[:-1])
ANSWER = [" Seven", "teen", "."]


def request(transcript: Sequence[Segment] = (), **more: Any) -> Request:
    return Request(model="m", messages=MESSAGES, transcript=transcript, **more)


@contextlib.asynccontextmanager
async def opened(kind: str, *script: list[str], **options: Any) -> AsyncIterator[tuple[TokenUpstream, OpenAIModel]]:
    async with TokenUpstream(kind, list(script) or [ANSWER], **options) as upstream:
        model = OpenAIModel(upstream.url, "sk-own", prefill_style="tokens", retries=1)
        try:
            yield upstream, model
        finally:
            await model.aclose()


def text_of(events: Sequence[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


both = pytest.mark.parametrize("spaced", [False, True], ids=["plain", "spaced"])
everywhere = pytest.mark.parametrize("kind", KINDS)


@everywhere
@both
async def test_a_resume_is_the_tokens_of_the_stream_before_it_and_what_was_told(kind: str, spaced: bool) -> None:
    async with opened(kind, CALL, ANSWER, ANSWER, spaced=spaced) as (upstream, model):
        events = await collect(await model.open(request(stop=(STOP,))))
        # llama.cpp keeps the stop sequence; the run machine puts it back.
        assert text_of(events) == (CALL_TEXT[: -len(STOP)] if kind == "llamacpp" else CALL_TEXT)
        first = len(upstream.requests[0]["prompt"])
        assert events[-2:] == [Ended("stop"), Usage(first, 10, first - 1)]
        transcript = [Segment("model", CALL_TEXT), TOLD]
        assert text_of(await collect(await model.open(request(transcript)))) == "".join(ANSWER)
        transcript += [Segment("model", " Seventeen"), TOLD]
        await collect(await model.open(request(transcript)))
        begin = (" " if spaced else "") + upstream.render(MESSAGES)
        after = f"{begin}{CALL_TEXT}\n{TOLD.text}\n"
        assert upstream.prompts == [begin, after, f"{after} Seventeen\n{TOLD.text}\n"]
        one, two, three = (upstream.tokens(body["prompt"]) for body in upstream.requests)
        kept = len(CALL) - (4 if kind == "llamacpp" else 2)  # but the last piece, and what llama.cpp held back with it
        assert two[: len(one) + kept] == one + CALL[:kept]
        assert three[: len(two) + 1] == two + ANSWER[:1]
        assert upstream.keys == {"Bearer sk-own"}


@everywhere
async def test_what_is_sent(kind: str) -> None:
    async with opened(kind, context=1000) as (upstream, model):
        parameters = {"temperature": 0, "seed": 3, "reasoning_effort": "low", "logprobs": False, "tool_choice": "none"}
        parameters |= {"stream_options": {"include_usage": False}, "chat_template_kwargs": {"mood": 1}, "n": 1}
        asked = request(parameters=parameters, max_tokens=7, max_tokens_key="max_completion_tokens", stop=(STOP,))
        await collect(await model.open(asked))
        (body,) = upstream.requests
        prompt = body.pop("prompt")
        common = {"model": "m", "temperature": 0, "seed": 3, "stream": True, "max_tokens": 7, "stop": [STOP]}
        theirs = {
            "llamacpp": {"return_tokens": True, "cache_prompt": True},
            "vllm": {"include_stop_str_in_output": True},
            "sglang": {"no_stop_trim": True},
        }
        usage = {} if kind == "llamacpp" else {"return_token_ids": True, "stream_options": {"include_usage": True}}
        assert body == common | theirs[kind] | usage
        rendering = next(asked for path, asked in upstream.asked if "messages" in asked)
        assert rendering["chat_template_kwargs"] == {"reasoning_effort": "low", "mood": 1}
        await collect(await model.open(request()))
        assert upstream.requests[1].get("max_tokens") == (None if kind == "llamacpp" else 1000 - len(prompt))


@everywhere
async def test_what_was_written_elsewhere_is_rendered(kind: str) -> None:
    transcript = [Segment("model", CALL_TEXT + " \n"), TOLD]
    async with opened(kind) as (upstream, model):
        await collect(await model.open(request(transcript)))
        assert upstream.prompts == [f"{upstream.render(MESSAGES)}{CALL_TEXT} \n\n{TOLD.text}\n"]


@everywhere
async def test_reasoning_is_told_from_the_answer_and_stays_in_the_prompt(kind: str) -> None:
    thought = ["hm", "</think>", "\n", "Yes", " and", " no"]
    async with opened(kind, thought, ANSWER, thinks=True) as (upstream, model):
        events = await collect(await model.open(request()))
        assert events[0] == ReasoningDelta("hm")
        assert text_of(events) == "\nYes and no"
        transcript = [Segment("model", "\nYes and"), TOLD]
        assert text_of(await collect(await model.open(request(transcript)))) == "".join(ANSWER)
        prompt = upstream.render(MESSAGES)
        assert upstream.prompts[1] == f"{prompt}hm</think>\nYes and\n{TOLD.text}\n"
        # Where the thoughts are not known any more, there were none.
        other = OpenAIModel(upstream.url, prefill_style="tokens")
        await collect(await other.open(request(transcript)))
        await other.aclose()
        assert upstream.prompts[2] == f"{prompt}</think>\n\n\nYes and\n{TOLD.text}\n"


@everywhere
async def test_a_server_that_gives_no_tokens_is_given_text(kind: str) -> None:
    async with opened(kind, ANSWER, gives_tokens=False) as (upstream, model):
        await collect(await model.open(request()))
        await collect(await model.open(request([Segment("model", " Seventeen"), TOLD])))
        assert upstream.prompts[1] == f"{upstream.prompts[0]} Seventeen\n{TOLD.text}\n"


async def cut(model: OpenAIModel, pieces: int) -> str:
    """Open a stream and close it after so many pieces."""
    stream = await model.open(request())
    text = ""
    async for batch in stream:
        text += text_of(batch)
        pieces -= len(batch)
        if pieces <= 0:
            break
    await stream.aclose()
    return text


@everywhere
async def test_a_stream_that_is_closed_is_ended_there_and_can_be_gone_on_from(kind: str) -> None:
    async with opened(kind, CALL, ANSWER, hold_at=5) as (upstream, model):
        text = await cut(model, 5)
        assert text == "".join(CALL[:5])
        await upstream.until_dropped()
        await collect(await model.open(request([Segment("model", text[:-3]), TOLD])))
        assert upstream.prompts[1] == f"{upstream.prompts[0]}{text[:-3]}\n{TOLD.text}\n"
        tokens = upstream.tokens(upstream.requests[1]["prompt"])
        assert tokens[len(upstream.requests[0]["prompt"]) :][:3] == CALL[:3]


def slot(prompt: int, decoded: int, busy: bool = True) -> dict[str, Any]:
    return {"is_processing": busy, "n_prompt_tokens": prompt + decoded, "next_token": [{"n_decoded": decoded}]}


async def test_a_resume_waits_for_the_slot_of_llama_cpp_that_has_its_cache() -> None:
    script: list[Any] = []
    async with opened("llamacpp", CALL, ANSWER, hold_at=5, slots=script) as (upstream, model):
        text = await cut(model, 5)
        length = len(upstream.requests[0]["prompt"])
        other = slot(length + 40, 3)
        unused = {"id": 9, "is_processing": False}
        script += [[unused, other, slot(length, 5)], [slot(length, 6), other], [slot(length, 6, busy=False), other]]
        await collect(await model.open(request([Segment("model", text), TOLD])))
        assert script == []
        # One that ended by itself left its slot.
        await collect(await model.open(request([Segment("model", text), TOLD, Segment("model", " Seven"), TOLD])))
        assert len(upstream.requests) == 3


async def test_a_llama_cpp_that_does_not_tell_about_its_slots_is_not_asked_again() -> None:
    refuse = {"/slots": (501, {"error": {"message": "start it with --slots"}})}
    async with opened("llamacpp", CALL, hold_at=5, refuse=refuse) as (upstream, model):
        for _ in range(2):
            text = await cut(model, 5)
            stream = await model.open(request([Segment("model", text), TOLD]))
            refuse["/slots"] = (200, [slot(len(upstream.requests[0]["prompt"]), 5)])  # would be waited for
            await stream.aclose()
        assert len(upstream.requests) == 4


# ------------------------------------------------------------------ what goes wrong


async def refused(model: OpenAIModel, asked: Request | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await model.open(asked or request())
    return caught.value


async def test_another_server() -> None:
    for kind, said in (("openai", "this upstream calls itself 'openai' and is none"), ("", "this upstream is none")):
        PATHS[kind] = "/v1/completions"
        try:
            async with opened(kind) as (_, model):
                error = await refused(model)
        finally:
            del PATHS[kind]
        assert said in error.message
        assert '"continue_final_message"' in error.message
        assert (error.status, error.code) == (502, "upstream_unsupported")


@everywhere
async def test_a_server_that_is_too_old(kind: str) -> None:
    path = "/apply-template" if kind == "llamacpp" else "/tokenize"
    async with opened(kind, refuse={path: (404, {"detail": "Not Found"})}) as (_, model):
        error = await refused(model)
    assert error.message == (
        f'The upstream has no {path}, which prefill = "tokens" needs. Use "continue_final_message", or a newer server.'
    )
    assert (error.status, error.code) == (502, "upstream_unsupported")


@everywhere
async def test_a_model_without_a_chat_template(kind: str) -> None:
    path = "/apply-template" if kind == "llamacpp" else "/tokenize"
    answer = {"error": {"message": "no chat template", "code": 400}}
    async with opened(kind, refuse={path: (400, answer)}) as (_, model):
        error = await refused(model)
    assert error.message == "The upstream could not apply its chat template: no chat template"
    assert error.status == 400


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_prompt_that_leaves_no_room(kind: str) -> None:
    async with opened(kind, context=10) as (upstream, model):
        error = await refused(model)
        length = len(upstream.encode(upstream.render(MESSAGES)))
        assert upstream.requests == []
    assert error.message == (
        f"The prompt has {length} tokens; the context of the model 'm' takes 10, its answer included."
    )
    assert (error.status, error.code) == (400, "context_length_exceeded")
    async with opened(kind, context=length + 5) as (upstream, model):
        await collect(await model.open(request(max_tokens=100)))
        assert upstream.requests[0]["max_tokens"] == 5


@everywhere
async def test_a_request_that_the_server_refuses(kind: str) -> None:
    answer = {"error": {"message": "unknown parameter", "code": 400}}
    refuse = {PATHS[kind]: (400, answer)}
    async with opened(kind, refuse=refuse) as (upstream, model):
        error = await refused(model)
        assert (error.status, error.message) == (400, "unknown parameter")
        refuse.clear()
        await collect(await model.open(request()))
        # It may have been started anew meanwhile.
        assert [path for path, _ in upstream.asked].count("/v1/models") == 2


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize"])
async def test_an_answer_that_can_not_be_read(path: str) -> None:
    async with opened("vllm", refuse={path: (200, ["what?"])}) as (_, model):
        error = await refused(model)
    assert (error.status, error.code) == (502, "upstream_malformed")


async def test_a_server_that_breaks_off() -> None:
    async with opened("vllm", CALL, hold_at=3) as (upstream, model):
        stream = await model.open(request())
        await anext(aiter(stream))
        await upstream._runner.cleanup()
        _, error = await collect_failing(stream)
        assert error.code == "upstream_disconnected"


IMAGE = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]}]


@pytest.mark.parametrize(
    "asked",
    [
        request(parameters={"response_format": {"type": "json_object"}}),
        request(parameters={"logprobs": True}),
        request(parameters={"n": 2}),
        Request(model="m", messages=IMAGE, transcript=[Segment("model", "a "), TOLD]),
    ],
)
async def test_what_only_the_chat_api_can_do_goes_there(asked: Request) -> None:
    async with opened("vllm") as (upstream, model):
        assert (await refused(model, asked)).status == 404  # this server has none
        ((path, body),) = upstream.asked
        assert path == "/v1/chat/completions"
        if asked.transcript:
            assert body["messages"][-1] == {"role": "assistant", "content": f"a \n{TOLD.text}\n"}
            assert body["continue_final_message"] is True


async def test_text_in_parts_is_text() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    async with opened("vllm") as (upstream, model):
        await collect(await model.open(Request(model="m", messages=messages)))
        assert len(upstream.requests) == 1
