"""Self-hosted servers in a test: the endpoints of llama.cpp, vLLM and SGLang as far as `prefill = "tokens"` uses them.

Their tokenizer is a toy (words, signs, spaces before words) that knows every token it has seen; what the model writes
is scripted, token by token, and need not be what the tokenizer would make of it.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from aiohttp import web

Body = dict[str, Any]

_TOKEN = re.compile(r"<\|\w+\|>|</?think>| ?\w+|\W")
PATHS = {"llamacpp": "/completion", "vllm": "/v1/completions", "sglang": "/v1/completions"}


class TokenUpstream:
    """One server of `kind`. `script`: what the model writes to each request, in tokens; the last one again and again.

    `hold`, once set, lets the model write beyond the token `hold_at`. `thinks`: the chat template opens a `<think>`.
    `spaced`: the tokenizer puts a space before every text. `context`: what the model takes (tokens). `refuse`: status
    and body of an answer to a path instead of its own. `slots`: what llama.cpp tells of them, asked once each.
    """

    def __init__(
        self,
        kind: str,
        script: list[list[str]],
        *,
        hold_at: int | None = None,
        thinks: bool = False,
        spaced: bool = False,
        context: int | None = 10_000,
        refuse: dict[str, tuple[int, Any]] | None = None,
        slots: list[Any] | None = None,
        gives_tokens: bool = True,
        reports_usage: bool = True,
    ) -> None:
        self.kind = kind
        self.hold = asyncio.Event()
        self.requests: list[Body] = []
        self.asked: list[tuple[str, Body]] = []
        self.changed = asyncio.Condition()
        self.keys: set[str | None] = set()  # that requests were authorized with
        self.dropped = 0
        self.url = ""
        self._script = script
        self._hold_at = hold_at
        self._thinks = thinks
        self._spaced = spaced
        self._context = context
        self._refuse = refuse or {}
        self._slots = slots
        self._gives_tokens = gives_tokens
        self._reports_usage = reports_usage
        self._ids: dict[str, int] = {}

    # ------------------------------------------------------------------ tokens

    def id(self, token: str) -> int:
        return self._ids.setdefault(token, len(self._ids))

    def encode(self, text: str) -> list[int]:
        if self._spaced and text:
            text = f" {text}"
        return [self.id(token) for token in _TOKEN.findall(text)]

    def tokens(self, ids: list[int]) -> list[str]:
        names = list(self._ids)
        return [names[id] for id in ids]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tokens(ids))

    def render(self, messages: list[Body]) -> str:
        said = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
        return f"{said}<|assistant|>{'<think>' if self._thinks else ''}"

    @property
    def prompts(self) -> list[str]:
        """The prompts of all requests, as text."""
        return [self.decode(body["prompt"]) for body in self.requests]

    # ------------------------------------------------------------------ server

    async def __aenter__(self) -> TokenUpstream:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def until_dropped(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.dropped > 0)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        path = request.path
        self.keys.add(request.headers.get("authorization"))
        if path in self._refuse:
            status, answer = self._refuse[path]
            return web.json_response(answer, status=status)
        if path == PATHS[self.kind]:
            self.requests.append(body)
            try:
                return await self._complete(request, body)
            except asyncio.CancelledError:
                self.dropped += 1
                raise
            finally:
                async with self.changed:
                    self.changed.notify_all()
        self.asked.append((path, body))
        answer = self._answer(path, body)
        return web.json_response(answer, status=404 if answer is None else 200)

    def _answer(self, path: str, body: Body) -> Any:
        if path == "/v1/models":
            card = {"id": "m", "object": "model", "owned_by": self.kind}
            return {"object": "list", "data": [{"id": "x", "owned_by": "y"}, card | {"max_model_len": self._context}]}
        if path == "/slots" and self._slots is not None:
            return self._slots.pop(0)
        if path == "/tokenize":
            if self.kind == "llamacpp":
                return {"tokens": self.encode(body["content"])}
            if "messages" in body:
                assert body["add_generation_prompt"] is True
                return {"tokens": self.encode(self.render(body["messages"])), "count": 1}
            assert body["add_special_tokens"] is False
            return {"tokens": self.encode(body["prompt"])}
        if path == "/detokenize" and self.kind != "llamacpp":
            return {"prompt" if self.kind == "vllm" else "text": self.decode(body["tokens"])}
        if path == "/apply-template" and self.kind == "llamacpp":
            return {"prompt": self.render(body["messages"])}
        return None

    async def _complete(self, request: web.Request, body: Body) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        script = self._script[min(len(self.requests), len(self._script)) - 1]
        text, sent, reason, count = "", 0, "stop", 0
        included = body.get("include_stop_str_in_output") or body.get("no_stop_trim")
        stops: list[str] = body.get("stop", [])
        for token in script:
            if count == self._hold_at:
                await self.hold.wait()
            if count == body.get("max_tokens"):
                reason = "length"
                break
            count += 1
            text += token
            end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
            if end is not None:
                text = text[: end if included else end - len(stops[0])]
                await self._write(response, text[sent:], [self.id(token)], count)
                break
            # Text that may become a stop string is held back, unless that is to be sent, too.
            if not included and any(text.endswith(stop[:n]) for stop in stops for n in range(1, len(stop))):
                await self._write(response, "", [self.id(token)], count)
            else:
                await self._write(response, text[sent:], [self.id(token)], count)
                sent = len(text)
        prompt = len(body["prompt"])
        if self.kind == "llamacpp":
            last = {
                "content": "",
                "tokens": [],
                "stop": True,
                "stop_type": {"stop": "eos", "length": "limit"}[reason],
                "tokens_predicted": count,
                "tokens_evaluated": prompt,
                "timings": {"cache_n": prompt - 1, "prompt_n": 1},
            }
            await self._event(response, last)
            return response
        await self._event(response, {"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
        if self._reports_usage:
            usage = {"prompt_tokens": prompt, "completion_tokens": count}
            usage["prompt_tokens_details"] = {"cached_tokens": prompt - 1}  # type: ignore[assignment]
            await self._event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _write(self, response: web.StreamResponse, text: str, tokens: list[int], count: int) -> None:
        if self.kind == "llamacpp":
            given = tokens if self._gives_tokens else []
            await self._event(response, {"content": text, "tokens": given, "stop": False, "tokens_predicted": count})
        else:
            choice: Body = {"index": 0, "text": text, "finish_reason": None}
            if self._gives_tokens:
                choice["token_ids"] = tokens
            await self._event(response, {"choices": [choice]})

    async def _event(self, response: web.StreamResponse, event: Body) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
