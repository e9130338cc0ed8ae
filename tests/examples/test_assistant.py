"""The assistant with a calendar and the weather, as a reader would run it: in one command, or by a client."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, listening, output_of

QUICK = {"ASYNCLM_UPSTREAMS_SIMULATED_TTFT_MS": "0", "ASYNCLM_UPSTREAMS_SIMULATED_TPOT_MS": "0"}
HIKE = '{"title":"Hike with Ada","city":"Oslo","day":"Sunday","time":"10:00:00"}'
ANSWER = f"""\
Let me look at your week, and at the weather in all three cities.

Here is what I found and did:
week = {{"fair":{{"title":"Book fair","city":"Rome","day":"Tuesday","time":"09:00:00"}},\
"concert":{{"title":"Concert in the park","city":"Lima","day":"Thursday","time":"20:00:00"}},\
"hike":{{"title":"Hike with Ada","city":"Oslo","day":"Saturday","time":"10:00:00"}}}}
rome = {{"celsius":15,"rain":true}}
lima = {{"celsius":19,"rain":false}}
oslo = {{"celsius":4,"rain":true}}
sunday = {{"celsius":4,"rain":false}}
hike = {HIKE}
umbrella = "new4"
"""
TWICE = (
    ANSWER.replace('"day":"Saturday"', '"day":"Sunday"')
    .replace("}}\nrome", '},"new4":{"title":"Pack an umbrella","city":"Rome","day":"Tuesday","time":"08:00:00"}}\nrome')
    .replace(
        '"new4"\n',
        '{"error":{"type":"tool_error","message":"ValueError: Tuesday at 08:00 is taken: Pack an umbrella"}}\n',
    )
)


def test_in_one_command_asked_twice(tmp_path: Path) -> None:
    environ = {**QUICK, "ASYNCLM_STORE_PATH": str(tmp_path / "store.db"), "COLUMNS": "100"}
    output = output_of(sys.executable, "examples/try_assistant.py", cwd=ROOT, **environ)
    first, picture, last = re.split(r"^This was run_\w+:\n", output, flags=re.MULTILINE)
    picture, _, second = picture.partition("\n\nLet")
    assert first == ANSWER + "\n"
    assert f"Let{second}" == TWICE + "\n"
    calls = ["rome", "lima", "oslo", "sunday"]
    assert re.findall(r"^(\w+) get_weather .* cache (\w+)$", picture, re.MULTILINE) == [(id, "miss") for id in calls]
    assert re.findall(r"^(\w+) get_weather .* cache (\w+)$", last, re.MULTILINE) == [(id, "hit") for id in calls]
    assert len(re.findall(r"cache (?:hit|miss)$", output, re.MULTILINE)) == 8  # and no other tool of it


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = str(tmp_path_factory.mktemp("asynclm") / "store.db")
    config = ("--config", "examples/asynclm.toml", "--port", "0")
    with listening("serve", *config, cwd=ROOT, ASYNCLM_STORE_PATH=store, **QUICK) as url:
        yield url


def test_the_client_in_python_asks_what_it_is_told(proxy: str) -> None:
    question = '<task>{"calls": [{"id": "x", "call": "get_weather(city=\'Bergen\', day=\'Monday\')"}]}</task>'
    output = output_of(sys.executable, "examples/client.py", "--url", proxy, question, cwd=ROOT)
    assert "no forecast for 'Bergen', only for Lima, Oslo, Rome" in output
    assert "'calls': 1" in output


@pytest.mark.slow
@pytest.mark.timeout(240)  # npm downloads
@pytest.mark.skipif(not shutil.which("npm"), reason="node is not installed")
def test_the_client_in_node(proxy: str, tmp_path: Path) -> None:
    for name in ("client.mjs", "cheat_sheet.json", "package.json"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    output_of("npm", "install", "--no-audit", "--no-fund", "--prefix", tmp_path, cwd=tmp_path)
    output = output_of("node", tmp_path / "client.mjs", "--url", proxy, "--policy", "parallel", cwd=tmp_path)
    assert output.startswith(ANSWER)
    assert "calls: 7" in output
    assert "cache: { miss: 4 }" in output
