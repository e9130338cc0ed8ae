"""The timeline of a run: an append-only list of timestamped entries, versioned JSON Lines when written down.

One artefact, many uses: it is what `GET /v1/asynclm/runs/{id}` returns, what the pictures draw and what the evaluation
measures. Times are seconds since the request arrived. The kinds, and what stands in `data`:

| kind | stream | call | data |
|---|---|---|---|
| `resumed` | yes | | a new stream carries on; `opened` follows |
| `opened` | yes | | `resume` (0 for the first stream) |
| `accepted` | yes | | the upstream answered (response headers) |
| `first_token` | yes | | |
| `text` | yes | | `text` (as the client got it) |
| `call` | yes | yes | `id`, `tool`, `arguments`: a block was completed |
| `rejected` | yes | yes | `id`, `error`, `message`: the block was completed, but is not run |
| `dispatched` | | yes | the tool began to run (it may have queued behind a limit) |
| `result` | | yes | `ok`, `value` (JSON text), `ms` (running time); `cache`, if it was asked: how it served the call |
| `cancelled` | | yes | |
| `detached` | | yes | it has no id, so nobody waits for it: it goes on behind the finished answer |
| `handed` | | yes | it was sent to the client, whose tool it is |
| `rebuilt` | | | the run begins with what the client's messages tell of native calls: so many `segments` |
| `parked` | | | the answer ended with `tool_calls`: `calls` that the client has to answer, `usage` (the answer's) |
| `restored` | | | a parked run goes on from what was kept of it: its open `calls`, and its `usage` so far |
| `taken` | | | another process goes on with this parked run; `calls` that run here go on for it |
| `continued` | | | the client came back, with that many `results`: a further answer begins |
| `interrupt` | yes | | `ids`, `text`: given to the model |
| `branch` | yes | | it carries on beside others; `open`: how many there are |
| `shared` | yes | yes | the same call runs already for a branch beside it: `with`, its number |
| `decided` | | | what `auto` chose, and `why`: `choice` is `deliver`, `wait`, `coalesce`, `merge` or `fork` |
| `merged` | yes | | the branch was given up before its first token; what it was told goes `into` that stream |
| `ahead` | yes | | it was opened in case that the open branches bring nothing new; what it writes is held back |
| `adopted` | yes | | they brought nothing new: that stream goes on |
| `folded` | yes | | a branch became part of the transcript |
| `trap` | yes | | `names`; `implicit` (the stream just ended, with calls pending) or `empty` (nothing was) |
| `forged` | yes | | the model wrote an `[INTR]` of its own and was cut off |
| `closed` | yes | | `reason`: `stop`, `length`, ... as upstream said it, or `cut` |
| `cache` | yes | | what became of a waiting model's KV cache: `choice` (`keep`, `swap`, `recompute`), `why`, ... |
| `restored` | yes | | a cache is there again, `by` `swap` or `recompute`: `tokens`, `ms` |
| `shortened` | yes | | an interrupt of so many `tokens` was cut down `to` what fits into the context |
| `usage` | yes | | `prompt_tokens`, `completion_tokens`, ... |
| `outside` | | | `source`, `text`, `scheduling`: an outside interrupt arrived |
| `unheard` | | | `source`, `text`: the run ended before the model could be told |
| `error` | | | `message`, `type` |
| `finished` | | | `reason`, `usage` |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

VERSION = 1


class Entry(msgspec.Struct, omit_defaults=True):
    """One thing that happened `t` seconds into the run. `stream` and `call` are numbers, counted from 0 in the run."""

    t: float
    kind: str
    stream: int | None = None
    call: int | None = None
    data: dict[str, Any] = {}


class Timeline(msgspec.Struct):
    """The entries of one run, with what identifies it."""

    run: str
    model: str
    policy: str
    created: int
    entries: list[Entry] = []

    def add(self, t: float, kind: str, *, stream: int | None = None, call: int | None = None, **data: Any) -> None:
        """Append an entry at `t` seconds into the run."""
        self.entries.append(Entry(t, kind, stream, call, data))


class _Header(msgspec.Struct):
    asynclm_timeline: int
    run: str
    model: str
    policy: str
    created: int


def to_jsonl(timeline: Timeline) -> bytes:
    """Write as JSON Lines: a header with the format's version, then one entry a line."""
    header = _Header(VERSION, timeline.run, timeline.model, timeline.policy, timeline.created)
    return msgspec.json.Encoder().encode_lines([header, *timeline.entries])


def from_jsonl(lines: Iterable[bytes]) -> Timeline:
    """Read what `to_jsonl` wrote. Raises ValueError for anything else, a newer version included."""
    rows = iter(lines)
    try:
        header = msgspec.json.decode(next(rows, b""), type=_Header)
    except msgspec.DecodeError as error:
        raise ValueError(f"not an asynclm timeline: {error}") from None
    if header.asynclm_timeline > VERSION:
        raise ValueError(f"timeline version {header.asynclm_timeline} is newer than this asynclm reads ({VERSION})")
    entries = [msgspec.json.decode(row, type=Entry) for row in rows if row.strip()]
    return Timeline(header.run, header.model, header.policy, header.created, entries)
