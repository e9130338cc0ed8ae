"""What an assistant needs: a calendar, and the weather where its appointments are. Both are made up.

Plain functions, typed and documented: that is what the model is told of them. asynclm.toml beside this file says which
of them are tools; the decorator is optional and says what a signature can't.
"""

import asyncio
import datetime
from dataclasses import dataclass, replace
from typing import Literal

from asynclm.adapters.tools import tool

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@dataclass(frozen=True)
class Event:
    title: str
    city: str
    day: Day
    time: datetime.time


@dataclass
class Weather:
    celsius: float
    rain: bool


CALENDAR = {
    "fair": Event("Book fair", "Rome", "Tuesday", datetime.time(9)),
    "concert": Event("Concert in the park", "Lima", "Thursday", datetime.time(20)),
    "hike": Event("Hike with Ada", "Oslo", "Saturday", datetime.time(10)),
}
CELSIUS = {"Lima": 19, "Oslo": 4, "Rome": 15}
RAIN = {("Rome", "Tuesday"), ("Oslo", "Saturday")}

# Calls run side by side. Who changes the calendar has it alone, so that nobody takes the hour that it has found free.
changing = asyncio.Lock()


async def events() -> dict[str, Event]:
    """The user's appointments this week, by id."""
    await asyncio.sleep(0.1)  # a real tool would ask a calendar service here
    return dict(CALENDAR)


# How long a call takes is told to the model, which writes the slowest first. What only reads may be answered from the
# cache: for ten minutes, and for an hour more while a fresh answer is fetched behind it.
@tool(estimate_ms=400, timeout_s=5, effect="read_only", cache_s=600, stale_s=3600)
async def get_weather(city: str, day: Day) -> Weather:
    """The weather forecast for a city.

    Args:
        city: The city's English name.
        day: The day of this week.
    """
    await asyncio.sleep(0.4)
    if city not in CELSIUS:
        raise LookupError(f"no forecast for {city!r}, only for {', '.join(CELSIUS)}")  # the model reads this
    return Weather(CELSIUS[city], rain=(city, day) in RAIN)


# Idempotent: done twice, it is as if done once.
@tool(estimate_ms=100, effect="idempotent")
async def move_event(id: str, day: Day, time: datetime.time) -> Event:
    """Move an appointment to another day or time.

    Args:
        id: The appointment's id.
        time: The time of day, as in 08:30.
    """
    async with changing:
        if id not in CALENDAR:
            raise LookupError(f"there is no appointment {id!r}")
        await expect_free(day, time, but_for=id)
        CALENDAR[id] = replace(CALENDAR[id], day=day, time=time)
        return CALENDAR[id]


# It changes something each time, so each call runs, and runs once: no cache, no second try.
@tool(estimate_ms=100, effect="effectful")
async def add_event(title: str, city: str, day: Day, time: datetime.time) -> str:
    """Add an appointment, and return its id."""
    async with changing:
        await expect_free(day, time)
        id = f"new{len(CALENDAR) + 1}"
        CALENDAR[id] = Event(title, city, day, time)
        return id


async def expect_free(day: Day, time: datetime.time, but_for: str | None = None) -> None:
    await asyncio.sleep(0.1)
    for id, event in CALENDAR.items():
        if (event.day, event.time) == (day, time) and id != but_for:
            raise ValueError(f"{day} at {time:%H:%M} is taken: {event.title}")
