"""Whether a target answers rightly at all, as the official client sees it: what a load must not be measured without."""

from __future__ import annotations

import asyncio
from typing import Final

import openai

from asynclm.bench.loadtest.fake_upstream import expected_text

_ANSWER_S: Final = 30.0


class WrongAnswerError(Exception):
    """A target's answer is not what the upstream wrote; says how."""


async def verify(name: str, url: str, chunks: int, delay_ms: int, *, header: str | None = None) -> None:
    """Read a whole stream of so many chunks and compare its text, finish reason and usage with the upstream's.

    `header` must be among the answer's headers. Raises `WrongAnswerError`.
    """
    text, reason, written = "", None, None
    http = openai.DefaultAsyncHttpxClient(trust_env=False)  # no proxy between here and loopback
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0, http_client=http) as client:
        try:
            async with asyncio.timeout(_ANSWER_S):
                raw = await client.chat.completions.with_raw_response.create(
                    model=f"fake-{chunks}-{delay_ms}",
                    messages=[{"role": "user", "content": "Say something."}],
                    stream=True,
                    stream_options={"include_usage": True},
                )
                async for chunk in raw.parse():
                    for choice in chunk.choices:
                        text += choice.delta.content or ""
                        reason = choice.finish_reason or reason
                    written = chunk.usage.completion_tokens if chunk.usage else written
        except (openai.OpenAIError, TimeoutError) as error:
            raise WrongAnswerError(f"{name}: {type(error).__name__}: {error}") from None
    if header is not None and header not in raw.headers:
        raise WrongAnswerError(f"{name}: no header {header}: this is not the mode to be measured")
    wanted = expected_text(chunks)
    for what, got, want in (("text", text, wanted), ("finish reason", reason, "stop"), ("usage", written, chunks)):
        if got != want:
            raise WrongAnswerError(f"{name}: {what} of a stream of {chunks} chunks: {got!r}, not {want!r}")
