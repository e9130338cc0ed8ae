"""The example with an MCP server: started by the proxy, or reached over HTTP."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from commands import ROOT, environment, listening, output_of

ANSWER = """\
Let me look at the shelves.

This is what I found and did:
sea = {"books":[{"id":"b1","title":"The Sea at Night"},{"id":"b2","title":"Tides"}]}
hills = {"books":[{"id":"b3","title":"High Pastures"}]}
first = "The Sea at Night waits for you"
second = "High Pastures waits for you"
"""
QUICK = {"ASYNCLM_UPSTREAMS_SIMULATED_TTFT_MS": "0", "ASYNCLM_UPSTREAMS_SIMULATED_TPOT_MS": "0"}
# The config says `python`, which is this one.
ENVIRON = {**QUICK, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_a_server_that_the_proxy_starts() -> None:
    with listening("serve", "--config", "examples/library.toml", "--port", "0", cwd=ROOT, **ENVIRON) as url:
        assert output_of(sys.executable, "examples/library.py", "--url", url, cwd=ROOT) == ANSWER


def test_a_server_over_http() -> None:
    code = (
        "import library_server, uvicorn, socket\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "app = library_server.server.streamable_http_app()\n"
        "uvicorn.Server(uvicorn.Config(app, log_level='error')).run(sockets=[listening])\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT / "examples",
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        tools = f'[{{"mcp": {{"url": "http://127.0.0.1:{port}/mcp", "required": true}}}}]'
        config = ["--config", "examples/library.toml", "--port", "0"]
        with listening("serve", *config, cwd=ROOT, ASYNCLM_TOOLS=tools, **QUICK) as url:
            assert output_of(sys.executable, "examples/library.py", "--url", url, cwd=ROOT) == ANSWER
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()
