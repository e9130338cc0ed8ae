import pytest

from asynclm.proxy.recording.redaction import Redactor, without

KEY = "sk-proj-0123456789abcdefghij"


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "sk-ant-api03-0123456789abcdefghij",
        "ghp_0123456789abcdefghijklmn",
        "AKIAABCDEFGHIJKLMNOP",
        "xoxb-0123456789-abcdef",
        "Bearer abcdefghijklmnop.qrstuvw==",
        "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\ndef\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret(secret: str) -> None:
    assert Redactor().text(f"It is {secret} , see?") == "It is [redacted] , see?"


@pytest.mark.parametrize("text", ["ask-me-anything", "sk-short", "the bearer of news", "a-b-c " * 50, "Basic English"])
def test_what_does_not(text: str) -> None:
    assert Redactor().text(text) == text


def test_known_keys_and_patterns() -> None:
    redactor = Redactor([r"\d{4}-\d{4}", r"(?i)hush"], ["server-secret", "tiny", None]).with_key("client-secret")
    assert redactor.text("server-secret tiny client-secret 1234-5678 HUSH") == (
        "[redacted] tiny [redacted] [redacted] [redacted]"
    )


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ('{"api_key":"abc def","n":1}', '{"api_key":"[redacted]","n":1}'),
        (
            "[CALL] a [HEAD] login(user='me', password='a\\'b') [END]",
            "[CALL] a [HEAD] login(user='me', password='[redacted]') [END]",
        ),
        ('X-Api-Key: "abc" and client-secret = "x"', 'X-Api-Key: "[redacted]" and client-secret = "[redacted]"'),
        ('{"max_tokens":"7","key":"x","monkey":"y"}', '{"max_tokens":"7","key":"x","monkey":"y"}'),
    ],
)
def test_fields_in_texts(text: str, cleaned: str) -> None:
    assert Redactor().text(text) == cleaned


def test_values_behind_names_that_say_so() -> None:
    value = {
        "headers": {"Authorization": "x", "X-Api-Key": "y", "accept": "z"},
        "list": [{"client_secret": "a", "max_tokens": 7, "token": "a word"}, KEY],
        "password": 3,
    }
    assert Redactor().value(value) == {
        "headers": {"Authorization": "[redacted]", "X-Api-Key": "[redacted]", "accept": "z"},
        "list": [{"client_secret": "[redacted]", "max_tokens": 7, "token": "a word"}, "[redacted]"],
        "password": 3,
    }


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_secret_in_pieces(size: int) -> None:
    text = f"a {KEY} b {KEY}"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    cleaned = without(pieces, Redactor().spans(text))
    assert len(cleaned) == len(pieces)
    assert "".join(cleaned) == "a [redacted] b [redacted]"
