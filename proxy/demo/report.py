"""What the demo says at its end: a picture of one case under each policy, and the table of all."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from asynclm.cml.timeline import Timeline
from asynclm.proxy.picture import Picture

_FONT_FACE: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class Outcome(msgspec.Struct, frozen=True):
    """One case under one policy.

    `total_s` is what the client measured, from the request to the last chunk; `latency_s` counts from the model's first
    token, as the paper does (section 6). `streams` counts upstream requests; `problems` is what the checks found.
    """

    case: int
    policy: str
    total_s: float
    latency_s: float
    streams: int
    timeline: Timeline
    problems: tuple[str, ...] = ()


def picture(outcomes: Sequence[Outcome], case: int) -> Picture:
    """One case's runs below each other on one scale."""
    runs = [outcome for outcome in outcomes if outcome.case == case]
    return Picture(*[run.timeline for run in runs], titles=[f"case {case}, {run.policy}:" for run in runs])


def typical_case(outcomes: Sequence[Outcome]) -> int:
    """The case to show: the one whose speed-up, of the last policy over the first, is the median."""
    policies = list(dict.fromkeys(outcome.policy for outcome in outcomes))
    ratios = _ratios(outcomes, policies[0], policies[-1])
    return sorted(ratios, key=lambda case: ratios[case])[len(ratios) // 2]


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row a policy: latencies, speed-ups over the baselines among the policies, and how many answers were right."""
    policies = list(dict.fromkeys(outcome.policy for outcome in outcomes))
    baselines = [policy for policy in ("sync", "parallel") if policy in policies]
    found = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="median / mean; latency is from the model's first token to the last, total from the request",
        caption_justify="left",
    )
    found.add_column("policy")
    speedups = [f"speed over\n{policy}" for policy in baselines]
    for name in ("latency, s", "total, s", *speedups, "resumes", "right"):
        found.add_column(name, justify="right", no_wrap=True)
    for policy in policies:
        runs = [outcome for outcome in outcomes if outcome.policy == policy]
        right = sum(not run.problems for run in runs)
        found.add_row(
            policy,
            _both([run.latency_s for run in runs]),
            _both([run.total_s for run in runs]),
            *(_both(list(_ratios(outcomes, baseline, policy).values())) for baseline in baselines),
            f"{statistics.mean(run.streams - 1 for run in runs):.1f}",
            f"{right}/{len(runs)}",
        )
    return found


def write_svg(picture: Picture, path: Path, title: str) -> None:
    """Write the picture as an SVG file. Raises OSError."""
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(picture)
    # Without rich's web fonts: the file shall load nothing from elsewhere.
    path.write_text(_FONT_FACE.sub("", console.export_svg(title=title)), encoding="utf-8")


def _ratios(outcomes: Sequence[Outcome], baseline: str, policy: str) -> dict[int, float]:
    """By case: how many times faster `policy` was than `baseline`."""
    slow = {outcome.case: outcome.latency_s for outcome in outcomes if outcome.policy == baseline}
    fast = {outcome.case: outcome.latency_s for outcome in outcomes if outcome.policy == policy}
    return {case: slow[case] / fast[case] for case in fast if case in slow}


def _both(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} / {statistics.mean(values):.2f}"
