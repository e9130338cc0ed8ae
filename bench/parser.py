"""What a chunk costs the parser: microseconds, fed about a token (4 characters) at a time.

    python -m asynclm.bench.parser [--json]

Plain text and call text, each in texts of growing length: the cost of a chunk must not grow with them. The best of
several rounds is taken, since everything that disturbs a round makes it slower.
"""

from __future__ import annotations

import argparse
import json
import time

from asynclm.cml.parser import Parser

PLAIN = "The quick brown fox jumps over the lazy dog, and tells a story about it. "
CALL = '[CALL] a1 [HEAD] get_weather(city="Oslo", days=3, note="it\'s [1] of \\"two\\"") [END]\n'


def chunks(pattern: str, characters: int) -> list[str]:
    """`pattern`, repeated up to about that many characters and cut into pieces of 4."""
    text = pattern * (characters // len(pattern) + 1)
    return [text[i : i + 4] for i in range(0, len(text), 4)]


def microseconds_a_chunk(pieces: list[str], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        parser = Parser()
        feed = parser.feed
        begin = time.perf_counter()
        for piece in pieces:
            feed(piece)
        best = min(best, time.perf_counter() - begin)
    return best / len(pieces) * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options.add_argument("--rounds", type=int, default=9)
    args = options.parse_args()
    rows = []
    for name, pattern in (("plain text", PLAIN), ("call text", CALL)):
        for characters in (1_000, 10_000, 100_000, 1_000_000):
            cost = microseconds_a_chunk(
                chunks(pattern, characters), max(3, args.rounds * 10_000 // max(characters, 10_000))
            )
            rows.append({"text": name, "characters": characters, "us_per_chunk": round(cost, 3)})
    one_block = [*chunks("[CALL] f(s='", 12), *chunks("a long literal, ", 1_000_000)]
    rows.append(
        {"text": "one open call", "characters": 1_000_000, "us_per_chunk": round(microseconds_a_chunk(one_block, 3), 3)}
    )
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{'text':14} {'characters':>11} {'us a chunk':>11}")
    for row in rows:
        print(f"{row['text']:14} {row['characters']:11,} {row['us_per_chunk']:11.3f}")


if __name__ == "__main__":
    main()
