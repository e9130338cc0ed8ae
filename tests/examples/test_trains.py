"""The example with an OpenAPI document: the service that publishes it, the proxy, the client, and `asynclm tools`."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, listening, output_of, started

ANSWER = """\
Let me look.

Here is what I found:
trains = [{"number":"R21","departure":"12:03","price":45.5},{"number":"R17","departure":"08:25","price":59.0}]
free = {"first":2,"second":0}
seat = {"id":1,"train":"R17","class":"first","window":true}
full = {"error":{"type":"tool_error","message":"POST /v1/reservations: answered 409 Conflict: no seat is left in R17"}}
none = {"error":{"type":"tool_error","message":"GET /v1/trains/X99/seats: answered 404 Not Found: no train is X99"}}
"""
ENVIRON = {
    "TRAINS_KEY": "passenger-1234",
    "ASYNCLM_UPSTREAMS_SIMULATED_TTFT_MS": "0",
    "ASYNCLM_UPSTREAMS_SIMULATED_TPOT_MS": "0",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The example, with the service at a port that is free here."""
    for name in ("trains.yaml", "trains_service.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    with started(sys.executable, "trains_service.py", "0", cwd=tmp_path) as line:
        port = line.rpartition(":")[2].strip(" )/=\n")
        config = (ROOT / "examples/trains.toml").read_text()
        (tmp_path / "asynclm.toml").write_text(config.replace(":8099/", f":{port}/"))
        yield tmp_path


def test_the_client_gets_an_answer_with_every_result(folder: Path) -> None:
    with listening("serve", "--port", "0", cwd=folder, **ENVIRON) as url:
        output = output_of(sys.executable, ROOT / "examples/trains.py", "--url", url, cwd=folder)
    assert output.strip() == ANSWER.strip()


def test_its_tools_by_hand(folder: Path) -> None:
    def tools(*arguments: str) -> str:
        return output_of(sys.executable, "-m", "asynclm.proxy.cli", "tools", *arguments, cwd=folder, **ENVIRON)

    listed = tools("list")
    assert "find_connections(from_: 'Bergen' | 'Oslo' | 'Trondheim', to: 'Bergen' | 'Oslo' | 'Trondheim'" in listed
    assert "reserve(train: str, class_: 'first' | 'second', window: bool = ...)  ~50 ms" in listed
    assert "replace_timetable" not in listed
    assert "3 tools" in tools("check")
    assert tools("call", "free_seats", '{"number": "N3", "class_": ["second"]}') == '{"second":3}\n'
