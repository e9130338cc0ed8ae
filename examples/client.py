"""Ask the proxy something and print the answer as it comes.

python examples/client.py                               the simulated model, which needs no key
python examples/client.py --model gpt-4o "Your question"

Nothing in here is about tools: they are the proxy's (asynclm.toml, assistant.py).
"""

import argparse
from pathlib import Path
from typing import Any

from openai import OpenAI

QUESTION = (
    "What have I got this week, and how will the weather be there? If the hike gets wet, move it to Sunday at ten, "
    "and where else it rains, note down an umbrella an hour before."
)
# The simulated model can't think. This tells it which calls to write, and which results each one needs.
CHEAT_SHEET = Path(__file__).with_name("cheat_sheet.json")


def ask(url: str, model: str = "simulated", question: str = QUESTION, policy: str = "auto") -> dict[str, Any]:
    """Print the answer; return what the proxy tells of the run."""
    if model == "simulated" and question == QUESTION:
        question += f"\n<task>{CHEAT_SHEET.read_text()}</task>"
    # The simulated model needs no key; for any other OPENAI_API_KEY is used.
    client = OpenAI(base_url=url, api_key="none" if model == "simulated" else None)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-asynclm-policy": policy},
    )
    about = {}
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            about = chunk.usage.model_dump().get("asynclm", {})
    print()
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the proxy something.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--url", default="http://127.0.0.1:8787/v1")
    parser.add_argument("--policy", default="auto", help="sync, parallel, immediate, coalesce, fork, auto or off")
    args = parser.parse_args()
    print("\nusage:", ask(args.url, args.model, args.question, args.policy))


if __name__ == "__main__":
    main()
