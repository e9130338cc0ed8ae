"""The examples, as a reader would run them: `asynclm serve` with their config, and their client."""

import sys
from collections.abc import Iterator

import pytest
from commands import ROOT, listening, output_of

EXAMPLES = ROOT / "examples"
ANSWER = """\
I'll look at both cities.

Here is what I found:
oslo = {"celsius":4,"rain":true}
lima = {"celsius":19,"rain":false}
oslo_f = 39.2
lima_f = 66.2
pack = "set for 08:00"
"""


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    environ = {"ASYNCLM_UPSTREAMS_SIMULATED_TTFT_MS": "0", "ASYNCLM_UPSTREAMS_SIMULATED_TPOT_MS": "0"}
    with listening("serve", "--config", "examples/asynclm.toml", "--port", "0", cwd=ROOT, **environ) as url:
        yield url


@pytest.mark.parametrize("policy", ["auto", "parallel"])
def test_the_client_gets_an_answer_with_every_result(proxy: str, policy: str) -> None:
    output = output_of(sys.executable, "examples/client.py", "--url", proxy, "--policy", policy, cwd=ROOT)
    assert output.startswith(ANSWER)
    assert "'calls': 5" in output


def test_the_client_asks_what_it_is_told(proxy: str) -> None:
    question = '<task>{"calls": [{"id": "x", "call": "forecast(city=\'Bergen\')"}]}</task>'
    output = output_of(sys.executable, "examples/client.py", "--url", proxy, question, cwd=ROOT)
    assert "no forecast for 'Bergen', only for Oslo, Rome, Lima" in output
