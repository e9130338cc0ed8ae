"""The same OpenAI client in front of upstreams that are not OpenAI: Anthropic's API, and the model in the process."""

import json
from typing import Any

import pytest
from aiohttp import web
from harness import proxy_for

from asynclm.adapters.models.simulated.task import Node, Task, encode_task

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]


def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


class Messages:
    """Anthropic's Messages API, with scripted texts. Honours stop sequences, as the real one does."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __aenter__(self) -> "Messages":
        app = web.Application()
        app.router.add_post("/v1/messages", self._answer)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        return web.json_response({"data": [{"type": "model", "id": "claude-x"}], "has_more": False})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        text = self.texts[len(self.requests) - 1]
        stopped = min((s for s in body.get("stop_sequences", ()) if s in text), key=text.find, default=None)
        if stopped is not None:
            text = text[: text.find(stopped)]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def send(kind: str, **data: Any) -> None:
            await response.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode())

        usage = {
            "input_tokens": 12,
            "cache_creation_input_tokens": 8,
            "cache_read_input_tokens": 30,
            "output_tokens": 1,
        }
        await send("message_start", message={"usage": usage})
        await send("content_block_start", index=0, content_block={"type": "text", "text": ""})
        await send("ping")
        for at in range(0, len(text), 5):
            await send("content_block_delta", index=0, delta={"type": "text_delta", "text": text[at : at + 5]})
        await send("content_block_stop", index=0)
        reason = "end_turn" if stopped is None else "stop_sequence"
        await send("message_delta", delta={"stop_reason": reason, "stop_sequence": stopped}, usage={"output_tokens": 9})
        await send("message_stop")
        return response


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_anthropic_with_tools(stream: bool) -> None:
    async with Messages("Let me see. [CALL] a [HEAD] add(x=1, y=2) [END]\n[TRAP][END] ignored", "It is 3.") as upstream:
        async with proxy_for(upstream.url, add, kind="anthropic") as proxy:
            options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
            answer = await proxy.client().chat.completions.create(
                model="claude-haiku-4-6", messages=QUESTION, stream=stream, **options
            )
            if stream:
                chunks = [chunk async for chunk in answer]
                choices = [choice for chunk in chunks for choice in chunk.choices]
                assert "".join(choice.delta.content or "" for choice in choices) == "Let me see.\n\nIt is 3."
                assert choices[-1].finish_reason == "stop"
                usage = chunks[-1].usage
            else:
                assert answer.choices[0].message.content == "Let me see.\n\nIt is 3."
                usage = answer.usage
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 18, 118)
            assert usage.prompt_tokens_details.cached_tokens == 60
        first, second = upstream.requests
        assert upstream.headers[0]["Authorization"] == "Bearer sk-client-key"
        system = first["system"] if isinstance(first["system"], str) else first["system"][0]["text"]
        assert "add(x: int, y: int)" in system
        assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
        told = json.dumps(second["messages"])
        assert "[INTR] a [HEAD] 3 [END]" in told
        assert "[TRAP][END]" in told
        assert "ignored" not in told


async def test_anthropic_without_tools_is_translated() -> None:
    async with Messages("Raw [CALL] f() [END].") as upstream, proxy_for(upstream.url, kind="anthropic") as proxy:
        completion = await proxy.client().chat.completions.create(
            model="claude-haiku-4-6", messages=QUESTION, max_tokens=7
        )
        assert completion.choices[0].message.content == "Raw [CALL] f() [END]."
        assert upstream.requests[0]["max_tokens"] == 7
        assert "stop_sequences" not in upstream.requests[0]


async def test_anthropics_own_endpoints_pass_through() -> None:
    async with Messages("Hi.") as upstream:
        own = 'api_key_env = "KEY"\n'
        async with proxy_for(upstream.url, add, toml=own, kind="anthropic", environ={"KEY": "sk-ant"}) as proxy:
            assert [model.id async for model in await proxy.client().models.list()] == ["claude-x"]
            body = {"model": "claude-haiku-4-6", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
            await proxy.client().post("/messages", cast_to=object, body=body)
            assert upstream.requests == [body]
            assert upstream.headers[-1]["x-api-key"] == "sk-ant"
            assert "Authorization" not in upstream.headers[-1]


@pytest.mark.parametrize("policy", ["sync", "parallel", "immediate", "coalesce", "auto"])
async def test_the_model_in_the_process_takes_injection(policy: str) -> None:
    task = Task(
        calls=(
            Node(id="a", call="add(x=1, y=2)", estimate_ms=1),
            Node(id="b", call="add(x=3, y=4)", estimate_ms=1),
            Node(id="c", call="add(x=5, y=6)", after=("a", "b"), estimate_ms=1),
        )
    )
    speed = "ttft_ms = 1\ntpot_ms = 0\n"
    async with proxy_for(None, add, toml=speed, kind="simulated") as proxy:
        raw = await proxy.client().chat.completions.with_raw_response.create(
            model="any",
            messages=[{"role": "user", "content": f"Do this. {encode_task(task)}"}],
            extra_headers={"x-asynclm-policy": policy},
        )
        text = raw.parse().choices[0].message.content
        for line in ("a = 3", "b = 7", "c = 11"):
            assert line in text
        timeline = proxy.server.registry.timeline(raw.headers["x-asynclm-run-id"])
        assert [entry.kind for entry in timeline.entries].count("opened") == 1  # never stopped and resumed
        assert [model.id async for model in await proxy.client().models.list()] == ["simulated"]
