"""Ask the proxy something and print the answer as it comes.

python examples/client.py                               the simulated model, which needs no key
python examples/client.py --model gpt-4o "Your question"
"""

import argparse
import json

from openai import OpenAI

QUESTION = "How warm is it in Oslo and in Lima tomorrow, in Fahrenheit? If it rains in Oslo, remind me at 8 to pack."

# The simulated model can't think. This cheat sheet tells it which calls to write, and which results each one needs.
CHEAT_SHEET = {
    "calls": [
        {"id": "oslo", "call": 'forecast(city="Oslo", day="tomorrow")', "estimate_ms": 300},
        {"id": "lima", "call": 'forecast(city="Lima", day="tomorrow")', "estimate_ms": 300},
        {"id": "oslo_f", "call": "fahrenheit(celsius=4)", "after": ["oslo"]},
        {"id": "lima_f", "call": "fahrenheit(celsius=19)", "after": ["lima"]},
        {"id": "pack", "call": 'remind(text="Pack for the rain.", at="08:00")', "after": ["oslo"]},
    ],
    "say": "I'll look at both cities.\n\n",
    "answer": "Here is what I found:",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the proxy something.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--url", default="http://127.0.0.1:8787/v1")
    parser.add_argument("--policy", default="auto", help="sync, parallel, immediate, coalesce, auto or off")
    args = parser.parse_args()
    question = args.question
    if args.model == "simulated":
        question += f"\n<task>{json.dumps(CHEAT_SHEET)}</task>"
    # The simulated model needs no key; for any other OPENAI_API_KEY is used.
    client = OpenAI(base_url=args.url, api_key="none" if args.model == "simulated" else None)
    stream = client.chat.completions.create(
        model=args.model,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-asynclm-policy": args.policy},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            print("\n\nusage:", chunk.usage.model_dump()["asynclm"])


if __name__ == "__main__":
    main()
