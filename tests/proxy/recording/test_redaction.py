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
        ('{"db_password":"a","dbPassword":"b"}', '{"db_password":"[redacted]","dbPassword":"[redacted]"}'),
        ('{"body":"{\\"password\\": \\"abc\\"}"}', '{"body":"{\\"password\\": \\"[redacted]\\"}"}'),
        ('{"token":"8f2c91d07be34a56"}, "token": "a word"', '{"token":"[redacted]"}, "token": "a word"'),
        ("https://ann:hunter2@host/x and http://host:80/a@b", "https://ann:[redacted]@host/x and http://host:80/a@b"),
        (
            "http://host/?page=2&api_key=abc&token=d&next_page_token=e#top",
            "http://host/?page=2&api_key=[redacted]&token=[redacted]&next_page_token=[redacted]#top",
        ),
        ("http://host/?key=title&sig=0123456789abcdef", "http://host/?key=title&sig=[redacted]"),
        ("X-Api-Key: abc\nAccept: d\nCookie: e=f; g=h", "X-Api-Key: [redacted]\nAccept: d\nCookie: [redacted]"),
        ("The key: turn it. The secret: patience.", "The key: turn it. The secret: patience."),
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


@pytest.mark.parametrize(
    "part", ["eyJ-", "eyJaaaaaaaa-", "token: ", "key=", "password='", "://a:", "?a_", "x-", 'pwd=\\"']
)
def test_the_time_it_takes_grows_with_the_text_only(part: str) -> None:
    """A search that begins anew at each place would take many minutes."""
    text = part * (2**19 // len(part))
    assert Redactor().text(text)


def test_many_secrets_in_one_text() -> None:
    text = 'password="a" ' * 20_000
    assert Redactor().text(text) == 'password="[redacted]" ' * 20_000
    assert without(list(text), Redactor().spans(text)).count("[redacted]") == 20_000
