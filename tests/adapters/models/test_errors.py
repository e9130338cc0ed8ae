import datetime
import email.utils
import subprocess
import sys

import pytest

from asynclm.adapters.models import errors


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "2", "retry-after-ms": "150"}, 0.15),
        ({"retry-after": "2", "retry-after-ms": "soon"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers, seconds):
    assert errors.retry_after(headers) == seconds


def test_retry_after_as_a_date():
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    seconds = errors.retry_after({"retry-after": email.utils.format_datetime(date, usegmt=True)})
    assert 3000 < seconds <= 3600


def test_a_status_that_has_no_name():
    assert errors.from_body(None, status=599).message == "The upstream answered with status 599 (no standard status)."


def test_the_sdks_are_imported_when_they_are_needed():
    code = (
        "import sys, asynclm.adapters.models as models;"
        "sdks = lambda: sorted({'openai', 'anthropic'} & sys.modules.keys());"
        "print(sdks()); models.OpenAIModel; print(sdks())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "['openai']"]
