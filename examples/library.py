"""Ask for books, of a proxy whose tools are those of an MCP server.

asynclm serve --config examples/library.toml
python examples/library.py
"""

import argparse
import json

from openai import OpenAI

QUESTION = "What do you have about the sea, and about mountains? Reserve the first one on each."

# What the simulated model is to write: it can't think. A real model gets along without.
CHEAT_SHEET = {
    "calls": [
        {"id": "sea", "call": 'find_books(topic="sea")', "estimate_ms": 300},
        {"id": "hills", "call": 'find_books(topic="mountains")', "estimate_ms": 300},
        {"id": "first", "call": 'reserve(book="b1")', "after": ["sea"], "estimate_ms": 300},
        {"id": "second", "call": 'reserve(book="b3")', "after": ["hills"], "estimate_ms": 300},
    ],
    "say": "Let me look at the shelves.\n\n",
    "answer": "This is what I found and did:",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask for books.")
    parser.add_argument("--url", default="http://127.0.0.1:8787/v1")
    args = parser.parse_args()
    client = OpenAI(base_url=args.url, api_key="none")
    stream = client.chat.completions.create(
        model="simulated",
        messages=[{"role": "user", "content": f"{QUESTION}\n<task>{json.dumps(CHEAT_SHEET)}</task>"}],
        stream=True,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
