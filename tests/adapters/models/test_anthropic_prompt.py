import copy
import itertools

import pydantic
import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models import ModelError, Request
from asynclm.adapters.models.anthropic_prompt import body_of, generation, takes_prefill, takes_sampling
from asynclm.cml.transcript import Segment, as_prefill

_sdk = pydantic.TypeAdapter(MessageCreateParamsStreaming)


def convert(messages, *, prefill=False, sampling=True, cache=False, **more):
    """The body, held against the official SDK's own types."""
    request = Request(model="claude-x", messages=messages, **more)
    before = copy.deepcopy(request)
    body = body_of(request, prefill=prefill, sampling=sampling, cache=cache, max_tokens=4096)
    assert request == before
    read = _sdk.validate_python(body)
    for message in read["messages"]:
        assert list(message["content"])
    list(read.get("system", []))
    return body


def turns(messages, **more):
    """The turns, each as its role and its texts."""
    return [
        (turn["role"], [block["text"] for block in turn["content"]]) for turn in convert(messages, **more)["messages"]
    ]


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a")], [("user", ["a"])]),
        ([user("a"), user("b")], [("user", ["a", "b"])]),
        ([user("a"), assistant("b"), user("c")], [("user", ["a"]), ("assistant", ["b"]), ("user", ["c"])]),
        ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], [("user", ["a", "b"])]),
        ([user("a"), assistant([{"type": "refusal", "refusal": "no"}]), user("b")],
         [("user", ["a"]), ("assistant", ["no"]), ("user", ["b"])]),
        ([user("a"), assistant(None), assistant(" \n"), user("")], [("user", ["a"])]),
        ([], [("user", ["."])]),
        ([assistant("hello"), user("a")], [("user", ["."]), ("assistant", ["hello"]), ("user", ["a"])]),
        ([user("a"), assistant("b")], [("user", ["a"]), ("assistant", ["b"]), ("user", ["Continue."])]),
        (
            [user("a"),
             assistant("Let me see.", tool_calls=[
                 {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "[END]"}'}},
                 {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "y"}}]),
             {"role": "tool", "tool_call_id": "c1", "content": "1"},
             {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "2"}]},
             user("b")],
            [("user", ["a"]),
             ("assistant", ["Let me see.", 'Tool call c1: f {"x": "\\u005bEND]"}', "Tool call c2: g y"]),
             ("user", ["Result of tool call c1:", "1", "Result of tool call c2:", "2", "b"])],
        ),
        (
            [user("a"), assistant(None, function_call={"name": "f", "arguments": "{}"}),
             {"role": "function", "name": "f", "content": "1"}],
            [("user", ["a"]), ("assistant", ["Tool call f {}"]), ("user", ["Result of tool call f:", "1"])],
        ),
    ],
)  # fmt: skip
def test_turns(messages, expected):
    assert turns(messages) == expected


def test_system_messages_are_lifted_from_wherever_they_stand():
    messages = [
        {"role": "system", "content": "one"},
        user("a"),
        {"role": "developer", "content": [{"type": "text", "text": "two"}]},
        user("b"),
    ]
    body = convert(messages)
    assert body["system"] == [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert turns(messages) == [("user", ["a", "b"])]
    assert "system" not in convert([user("a")])


def test_images():
    parts = [
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
        {"type": "image_url", "image_url": "data:image/jpeg;name=x;base64,AAAA"},
    ]
    sources = [block["source"] for block in convert([user(parts)])["messages"][0]["content"]]
    assert sources == [
        {"type": "url", "url": "https://x/y.png"},
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0="},
        {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"},
    ]


@pytest.mark.parametrize(
    "message",
    [
        user([{"type": "input_audio", "input_audio": {}}]),
        user([{"type": "image_url", "image_url": {"url": "ftp://x"}}]),
        user([{"type": "image_url", "image_url": {"url": "data:image/png,plain"}}]),
        user([{"type": "image_url"}]),
        user([{"type": "text"}]),
        user(["text"]),
        user(5),
        {"role": "wizard", "content": "a"},
        {"content": "a"},
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
        "text",
    ],
)
def test_what_cannot_be_said_is_refused(message):
    with pytest.raises(ModelError) as caught:
        convert([user("a"), message])
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
    assert "messages[1]" in caught.value.message


CALL, INTR = Segment("model", "[CALL] a [HEAD] f() [END]"), Segment("runtime", "[INTR] a [HEAD] 1 [END]")


def test_interrupts_are_user_turns():
    assert turns([user("a")], transcript=[CALL, INTR, Segment("model", "b"), INTR]) == [
        ("user", ["a"]),
        ("assistant", [CALL.text]),
        ("user", [INTR.text]),
        ("assistant", ["b"]),
        ("user", [INTR.text]),
    ]
    # Interrupts that come before the model wrote anything join the user's own turn.
    assert turns([user("a")], transcript=[INTR, INTR]) == [("user", ["a", INTR.text, INTR.text])]


def test_prefill_continues_the_assistant_turn():
    assert turns([user("a")], prefill=True, transcript=[CALL, INTR]) == [
        ("user", ["a"]),
        ("assistant", [CALL.text, f"\n{INTR.text}"]),
    ]
    assert turns([user("a")], prefill=True) == [("user", ["a"])]
    assert turns([user("a"), assistant("b \n")], prefill=True) == [("user", ["a"]), ("assistant", ["b"])]
    assert turns([user("a"), assistant("b \n")], prefill=True, transcript=[Segment("model", " c \n")]) == [
        ("user", ["a"]),
        ("assistant", ["b", " c"]),
    ]
    # Not while the model thinks: then the API refuses it.
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert turns([user("a")], prefill=True, transcript=[CALL, INTR], parameters=thinking)[-1] == ("user", [INTR.text])


SEGMENTS = st.lists(st.builds(Segment, st.sampled_from(["model", "runtime"]), st.text("ab \n", min_size=1)))


@given(SEGMENTS)
def test_a_prefill_is_one_text_in_blocks(segments):
    blocks = [text for role, text in flat(segments, prefill=True) if role == "assistant"]
    assert "".join(blocks) == as_prefill(segments)
    assert all(block.strip() and block == block.rstrip() for block in blocks)


@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "interleave"])
@pytest.mark.parametrize("last", [user("a"), assistant("b \n")], ids=["user", "assistant"])
@given(segments=SEGMENTS)
def test_the_prompt_of_a_resume_begins_with_the_one_before(segments, last, prefill):
    segments = [s for s in segments if s.author == "model" or s.text.strip()]
    segments.append(Segment("runtime", "[INTR]"))  # a resume always tells something
    told = [n for n, segment in enumerate(segments) if segment.author == "runtime"]
    prompts = [flat(segments[: n + 1], last, prefill=prefill) for n in (-1, *told)]
    for shorter, longer in itertools.pairwise(prompts):
        assert longer[: len(shorter)] == shorter


def flat(segments, last=None, **more):
    """The blocks of a prompt, each as its role and its text."""
    messages = [{"role": "system", "content": "s"}, user("q"), last or user("a")]
    body = convert(messages, transcript=segments, **more)
    return [(turn["role"], block["text"]) for turn in body["messages"] for block in turn["content"]]


def marked(*messages, **more):
    """Whether each block is marked as a cache breakpoint: those of the system prompt, those of the turns."""
    body = convert([{"role": "system", "content": "s"}, *messages], cache=True, **more)
    blocks = [block for turn in body["messages"] for block in turn["content"]]
    for block in (*body["system"], *blocks):
        assert block.get("cache_control", {"type": "ephemeral"}) == {"type": "ephemeral"}
    return ["cache_control" in block for block in body["system"]], ["cache_control" in block for block in blocks]


def test_cache_breakpoints():
    assert marked(user("a")) == ([True], [True])
    assert marked(user("a"), user("b"), transcript=[CALL, INTR]) == ([True], [False, False, True, True])
    assert marked(user("a"), prefill=True, transcript=[CALL, INTR]) == ([True], [False, True, True])
    system, blocks = marked(user("a"), transcript=[CALL, INTR] * 30)
    assert system == [True]
    assert [len(blocks) - at for at, mark in enumerate(blocks) if mark] == [22, 2, 1]


SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1.7}, {"temperature": 1}),
        ({"temperature": None, "top_p": 0.9}, {"top_p": 0.9}),
        ({"temperature": 0.3, "top_p": 0.9, "top_k": 5}, {"temperature": 0.3, "top_k": 5}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"safety_identifier": "s1"}, {"metadata": {"user_id": "s1"}}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"service_tier": "flex"}, {}),
        ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "none"}, {}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
         {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ({"response_format": {"type": "json_object"}, "seed": 1, "n": 1, "frequency_penalty": 1, "presence_penalty": 1,
          "logit_bias": {}, "logprobs": False, "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True,
          "stream_options": {"include_usage": True}, "tools": [], "tool_choice": "auto", "unheard_of": 1}, {}),
    ],
)  # fmt: skip
def test_parameters(given, expected):
    body = convert([user("a")], parameters=given)
    fixed = {"model": "claude-x", "max_tokens": 4096, "messages": body["messages"], "stream": True}
    assert body == {**fixed, **expected}


def test_sampling_parameters_are_left_out_where_they_are_refused():
    body = convert([user("a")], sampling=False, parameters={"temperature": 1, "top_p": 1, "top_k": 1, "user": "u"})
    assert body.keys() == {"model", "max_tokens", "messages", "stream", "metadata"}


def test_bounds():
    body = convert([user("a")], max_tokens=7, max_tokens_key="max_completion_tokens", stop=("][END]", "\n\n", "x"))
    assert body["max_tokens"] == 7
    assert body["stop_sequences"] == ["][END]", "x"]


def test_tools_of_the_clients_own_are_refused():
    with pytest.raises(ModelError) as caught:
        convert([user("a")], parameters={"tools": [{"type": "function", "function": {"name": "f"}}]})
    assert (caught.value.status, caught.value.param) == (400, "tools")


@pytest.mark.parametrize(
    ("model", "version", "prefill", "sampling"),
    [
        ("claude-3-opus-20240229", (3, 0), True, True),
        ("claude-3-5-sonnet-20241022", (3, 5), True, True),
        ("claude-2.1", (2, 1), True, True),
        ("claude-sonnet-4-20250514", (4, 0), True, True),
        ("claude-opus-4-1-20250805", (4, 1), True, True),
        ("claude-haiku-4-5", (4, 5), True, True),
        ("anthropic/claude-sonnet-4.5", (4, 5), True, True),
        ("us.anthropic.claude-opus-4-5-20251101-v1:0", (4, 5), True, True),
        ("claude-opus-4-6", (4, 6), False, True),
        ("claude-opus-4-7", (4, 7), False, False),
        ("claude-sonnet-5", (5, 0), False, False),
        ("claude-haiku-5-5", (5, 5), False, False),
        ("claude-mythos-preview", (99, 0), False, False),
        ("glm-5", None, False, True),
    ],
)
def test_what_a_model_takes_by_its_name(model, version, prefill, sampling):
    assert (generation(model), takes_prefill(model), takes_sampling(model)) == (version, prefill, sampling)
