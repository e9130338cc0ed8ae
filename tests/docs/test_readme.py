"""What the README shows, done: its config, its tool and its three clients, against the simulated upstream."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, fenced, listening, output_of

from asynclm.adapters.models.simulated.task import Node, Task, encode_task

README = ROOT / "README.md"
ADDRESS = "http://127.0.0.1:8787/v1"
QUESTION = "How many of A-1234 and of B-77 are in stock?"
# The simulated model writes what it is told in the question.
TASK = Task(
    (
        Node("a", 'stock(article="A-1234")'),
        Node("b", 'stock(article="B-77", warehouse="main")'),
        Node("c", 'stock(article="C-9")'),
    ),
    answer="In stock:",
)
ANSWER = 'In stock:\na = 17\nb = 0\nc = {"error":{"type":"tool_error","message":"KeyError: \'C-9\'"}}'


def example(language: str, name: str) -> str:
    """The code block that says in its first line which file it is."""
    (found,) = [code for code in fenced(README, language) if code.splitlines()[0].endswith(f" {name}")]
    return found


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`asynclm serve` on the README's config and tool, in front of `asynclm simulate`: its base URL."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "asynclm.toml").write_text(example("toml", "asynclm.toml"))
    (folder / "tools.py").write_text(example("python", "tools.py"))
    with (
        listening("simulate", "--port", "0", "--ttft-ms", "0", "--tpot-ms", "0", cwd=folder) as upstream,
        listening(
            "serve", "--port", "0", cwd=folder, OPENAI_API_KEY="sk-x", ASYNCLM_UPSTREAMS_MAIN_BASE_URL=upstream
        ) as url,
    ):
        yield url


def client(language: str, name: str, folder: Path, url: str) -> Path:
    """The README's client, pointed at the test's proxy, with the cheat sheet in its question."""
    code = example(language, name)
    assert code.count(ADDRESS) == code.count(QUESTION) == 1
    question = json.dumps(f"{QUESTION} {encode_task(TASK)}")[1:-1]  # as all three languages write a string
    path = folder / name
    path.write_text(code.replace(ADDRESS, url).replace(QUESTION, question))
    return path


def test_python(proxy: str, tmp_path: Path) -> None:
    path = client("python", "client.py", tmp_path, proxy)
    assert output_of(sys.executable, path, cwd=tmp_path, OPENAI_API_KEY="sk-x") == ANSWER


@pytest.mark.slow
@pytest.mark.timeout(240)  # npm downloads
@pytest.mark.skipif(not shutil.which("npm"), reason="node is not installed")
def test_node(proxy: str, tmp_path: Path) -> None:
    path = client("js", "client.mjs", tmp_path, proxy)
    shutil.copy(ROOT / "examples/package.json", tmp_path)  # which says of what version the package is
    output_of("npm", "install", "--no-audit", "--no-fund", "--prefix", tmp_path, cwd=tmp_path)
    assert output_of("node", path, cwd=tmp_path, OPENAI_API_KEY="sk-x") == ANSWER


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(proxy: str, tmp_path: Path) -> None:
    path = client("sh", "client.sh", tmp_path, proxy)
    events = output_of("sh", path, cwd=tmp_path, OPENAI_API_KEY="sk-x").split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ANSWER


def test_runs(proxy: str, tmp_path: Path) -> None:
    path = client("python", "client.py", tmp_path, proxy)
    output_of(sys.executable, path, cwd=tmp_path, OPENAI_API_KEY="sk-x")
    asynclm = [sys.executable, "-m", "asynclm.proxy.cli", "runs", "--url", proxy]
    assert "gpt-4o" in output_of(*asynclm, "list", cwd=tmp_path)
