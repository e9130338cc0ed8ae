"""The assistant at work, in one command: starts the proxy, asks it twice, and draws what happened when.

python examples/try_assistant.py                        the simulated model, which needs no key
OPENAI_API_KEY=... python examples/try_assistant.py --model gpt-4o

The second time the weather is in the cache. The hike has been moved, and that hour is taken by an umbrella.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from client import ask

ASYNCLM = [sys.executable, "-m", "asynclm.proxy.cli"]
CONFIG = Path(__file__).with_name("asynclm.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the assistant about the week, twice.")
    parser.add_argument("--model", default="simulated")
    args = parser.parse_args()
    serve = [*ASYNCLM, "serve", "--config", str(CONFIG), "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        url = proxy.stdout.readline().split()[-1]  # asynclm: listening on http://127.0.0.1:40123/v1
        try:
            for _ in range(2):
                run = ask(url, args.model)["run"]
                print(f"\nThis was {run}:\n", flush=True)
                subprocess.run([*ASYNCLM, "runs", "--url", url, "show", run], check=True)
                print()
        finally:
            proxy.terminate()


if __name__ == "__main__":
    main()
