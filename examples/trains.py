"""Ask the proxy for trains, and print the answer as it comes. See trains.toml for what must be running."""

import argparse
import json

from openai import OpenAI

QUESTION = "Which trains go from Oslo to Bergen, the cheapest first? And reserve me a seat in R17, first class."

# The simulated model can't think. This cheat sheet tells it which calls to write, and which results each one needs.
CHEAT_SHEET = {
    "calls": [
        {"id": "trains", "call": 'find_connections(from_="Oslo", to="Bergen", sort="price")', "estimate_ms": 50},
        {"id": "free", "call": 'free_seats("R17", class_=["first", "second"])', "estimate_ms": 50},
        {"id": "seat", "call": 'reserve(train="R17", class_="first", window=True)', "after": ["free"]},
        {"id": "full", "call": 'reserve(train="R17", class_="second")', "after": ["free"]},
        {"id": "none", "call": 'free_seats("X99")'},
    ],
    "say": "Let me look.\n\n",
    "answer": "Here is what I found:",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the proxy for trains.")
    parser.add_argument("--url", default="http://127.0.0.1:8787/v1")
    parser.add_argument("--model", default="simulated")
    args = parser.parse_args()
    question = QUESTION
    if args.model == "simulated":
        question += f"\n<task>{json.dumps(CHEAT_SHEET)}</task>"
    # The simulated model needs no key; for any other OPENAI_API_KEY is used.
    client = OpenAI(base_url=args.url, api_key="none" if args.model == "simulated" else None)
    stream = client.chat.completions.create(
        model=args.model, messages=[{"role": "user", "content": question}], stream=True
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
