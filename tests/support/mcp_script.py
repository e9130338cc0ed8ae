"""An MCP server of the protocol of 2025, in plain Python, over stdio. It misbehaves as its arguments and tools say."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TOOLS = [
    "echo",
    "exit",
    "huge",
    "silent",
    "junk",
    "junk_result",
    "flood",
    "flood_forever",
    "grow",
    "orphan",
    "ask",
    "deaf",
]
lock = threading.Lock()


def write(text: str) -> None:
    with lock:
        sys.stdout.write(text)
        sys.stdout.flush()


def send(**message: Any) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


def call(id: int, name: str, said: str) -> None:
    match name:
        case "echo":
            send(id=id, result=text(said))
        case "exit":
            print(said, file=sys.stderr, flush=True)
            os._exit(7)
        case "huge":  # 50 MB; `said` is which way round the message stands
            body = json.dumps(text("x" * 50_000_000))
            if said == "first":
                write(f'{{"jsonrpc":"2.0","id":{id},"result":{body}}}\n')
            else:
                write(f'{{"result":{body},"jsonrpc":"2.0","id":{id}}}\n')
        case "silent":
            pass
        case "deaf":
            send(id=id, result=text("listening no more"))
            time.sleep(1000)
        case "junk":
            write("Listening on port 3000\n" + "\xff\n" + "[" * 100_000 + "\n" + '{"jsonrpc": "1.0"}\n\n')
            send(id=id, result=text("after junk"))
        case "junk_result":
            send(id=id, result={"content": [{"type": "smell", "smell": "roses"}]})
        case "flood":
            note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
            write(f"{json.dumps(note)}\n" * int(said))
            send(id=id, result=text("after the flood"))
        case "flood_forever":

            def flood() -> None:
                while True:
                    send(method="notifications/tools/list_changed")

            threading.Thread(target=flood, daemon=True).start()
            send(id=id, result=text("flooding"))
        case "grow":
            TOOLS.append("grown")
            send(method="notifications/tools/list_changed")
            send(id=id, result=text("grown"))
        case "orphan":  # a child keeps the pipes open, and this process ends
            child = subprocess.Popen(["sleep", "1000"])
            send(id=id, result=text(str(child.pid)))
            os._exit(0)
        case "ask":
            send(id="s1", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
            answer = json.loads(sys.stdin.readline())
            send(id=id, result=text(json.dumps(answer)))


def main() -> None:
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    if how == "leave":
        print(f"bad key {os.environ.get('SECRET', '')}", file=sys.stderr, flush=True)
        sys.exit(1)
    if how == "chatter":
        write("Welcome to my server!\n")
    if how == "endless":
        while True:
            write("x" * 65_536)
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(sys.argv[2]).write_text(str(os.getpid()))
    for line in sys.stdin:
        message = json.loads(line)
        id, method = message.get("id"), message["method"]
        if how in ("silent", "chatter"):
            continue
        match method:
            case "initialize":
                capabilities = {"tools": {"listChanged": True}}
                info = {"name": "script", "version": "1"}
                version = "2025-06-18"
                send(id=id, result={"protocolVersion": version, "capabilities": capabilities, "serverInfo": info})
            case "tools/list" if how == "pages":  # which never end
                page = int(message.get("params", {}).get("cursor", "0"))
                send(id=id, result={"tools": [tool(f"t{page}_{n}") for n in range(50)], "nextCursor": str(page + 1)})
            case "tools/list" if how == "odd":
                bad = {"name": "bad", "inputSchema": {"type": "object", "properties": {"a": {"type": "nothing"}}}}
                twice = [tool("a-b"), tool("a_b")]
                send(id=id, result={"tools": [bad, *twice, tool("class"), tool("2d"), tool("files/read")]})
            case "tools/list":
                send(id=id, result={"tools": [tool(name) for name in TOOLS]})
            case "tools/call":
                call(id, message["params"]["name"], message["params"].get("arguments", {}).get("text", ""))
            case _ if id is not None:
                send(id=id, error={"code": -32601, "message": "Method not found"})
    while how == "stubborn":
        time.sleep(1)


if __name__ == "__main__":
    main()
