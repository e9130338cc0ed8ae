"""The tests of an assistant that cost nothing from the second time on: answers are recorded, and served again.

python -m pytest examples/test_assistant.py                  what was not recorded goes to the model, and is
REPLAY=replay python -m pytest examples/test_assistant.py    recordings only: no model, no tools (as in CI)
REPLAY=record python -m pytest examples/test_assistant.py    everything anew

The recordings are in a file to be committed, recordings.jsonl beside this one. They are asked for anew when the
question or a tool has changed. The model is simulated here; any other is tested the same way.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

HERE = Path(__file__).parent
RECORDINGS = Path(os.environ.get("RECORDINGS", HERE / "recordings.jsonl"))
REPLAY = os.environ.get("REPLAY", "auto")
CHEAT_SHEET = (
    '<task>{"calls": [{"id": "oslo", "call": "get_weather(city=\'Oslo\', day=\'Saturday\')"},'
    ' {"id": "hike", "call": "move_event(\'hike\', \'Sunday\', \'10:00\')", "after": ["oslo"]}],'
    ' "answer": "Your hike:"}</task>'
)


def ask(client: OpenAI, question: str) -> str:
    """What is tested: it would be an agent of your own."""
    stream = client.chat.completions.create(
        model="simulated", messages=[{"role": "user", "content": question}], stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a proxy that has the recordings."""
    environ = os.environ | {"ASYNCLM_STORE_PATH": str(tmp_path_factory.mktemp("asynclm") / "store.db")}
    asynclm = [sys.executable, "-m", "asynclm.proxy.cli"]
    config = ["--config", str(HERE / "asynclm.toml")]
    if RECORDINGS.exists():
        subprocess.run([*asynclm, "runs", "import", *config, RECORDINGS], env=environ, check=True)
    serve = [*asynclm, "serve", *config, "--port", "0"]
    with subprocess.Popen(serve, env=environ, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        url = proxy.stdout.readline().split()[-1]  # asynclm: listening on http://127.0.0.1:40123/v1
        yield OpenAI(base_url=url, api_key="none", default_headers={"x-asynclm-replay": REPLAY})
        proxy.terminate()
    if REPLAY != "replay":
        subprocess.run([*asynclm, "runs", "export", *config, "--output", RECORDINGS], env=environ, check=True)


def test_it_moves_the_hike_out_of_the_rain(client: OpenAI) -> None:
    answer = ask(client, f"If it rains on Saturday, move the hike to Sunday at ten. {CHEAT_SHEET}")
    assert '"rain":true' in answer
    assert '"day":"Sunday","time":"10:00:00"' in answer


def test_it_knows_no_weather_of_other_cities(client: OpenAI) -> None:
    answer = ask(client, '<task>{"calls": [{"id": "x", "call": "get_weather(\'Bergen\', \'Monday\')"}]}</task>')
    assert "no forecast for 'Bergen'" in answer
