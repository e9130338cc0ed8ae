"""Three tools for the proxy: plain functions, typed and documented. The weather is made up."""

import asyncio
import datetime
from dataclasses import dataclass
from typing import Literal

from asynclm.adapters.tools import tool


@dataclass
class Forecast:
    celsius: float
    rain: bool


FORECASTS = {"Oslo": Forecast(4, rain=True), "Rome": Forecast(15, rain=False), "Lima": Forecast(19, rain=False)}
REMINDERS: list[tuple[datetime.time, str]] = []


# The decorator is optional. It says what a signature can't: how long a call takes (the model is told, so that it can
# write the slowest first), when to give up, and that running it changes nothing.
@tool(estimate_ms=300, timeout_s=5, effect="read_only")
async def forecast(city: str, day: Literal["today", "tomorrow"] = "today") -> Forecast:
    """The weather forecast for a city.

    Args:
        city: The city's English name.
        day: The day to look at.
    """
    await asyncio.sleep(0.3)  # a real tool would ask a weather service here
    if city not in FORECASTS:
        raise LookupError(f"no forecast for {city!r}, only for {', '.join(FORECASTS)}")  # the model reads this
    return FORECASTS[city]


def fahrenheit(celsius: float) -> float:
    """Convert degrees Celsius to degrees Fahrenheit."""
    return round(celsius * 9 / 5 + 32, 1)


def remind(text: str, at: datetime.time) -> str:
    """Set a reminder for the user.

    Args:
        text: What to remind of.
        at: The time of day, as in 08:30.
    """
    REMINDERS.append((at, text))
    return f"set for {at:%H:%M}"
