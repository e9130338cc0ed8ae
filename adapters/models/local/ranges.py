"""Numbers as regular expressions, within bounds."""

from __future__ import annotations

from typing import Final

# `cml.body` refuses integers of more than 1024 bits, about 308 digits.
_MAX_DIGITS: Final = 300

# A number with an exponent, as Python and JSON write them: from 5e-324 to 1.7976931348623157e+308, never infinite.
_MOST: Final = "7976931348623157"  # behind the point
_BELOW: Final = "|".join(
    [_MOST[:n] for n in range(1, len(_MOST) + 1)]
    + [f"{_MOST[:n]}[0-{int(digit) - 1}][0-9]*" for n, digit in enumerate(_MOST)]
)
_HUGE: Final = rf"1(\.({_BELOW}))?[eE]\+?308"
EXPONENTIAL: Final = (
    r"(0|[1-9][0-9]{0,15})(\.[0-9]+)?[eE]([+-]?[0-9]{1,2}|\+?1[0-9]{2}|-[0-9]{1,3})"
    r"|[0-9](\.[0-9]+)?[eE]\+?(2[0-9]{2}|30[0-7])|" + _HUGE
)


def integers(low: int | None, high: int | None) -> str | None:
    """The whole numbers from `low` to `high` (None: unbounded) in decimal; None if there are none.

    Negative zero counts as below zero.
    """
    if low is not None and high is not None and low > high:
        return None
    written: list[str] = []
    if low is None or low < 0:
        least = max(1, -high) if high is not None else 1 if low is not None else 0
        negative = _naturals(least, None if low is None else -low)
        if negative is not None:
            written.append(f"-({negative})")
    if high is None or high >= 0:
        positive = _naturals(max(0, low or 0), high)
        if positive is not None:
            written.append(positive)
    return "|".join(written) or None


def decimals(low: float | None, high: float | None) -> str | None:
    """At least the numbers from `low` to `high` in decimal, without exponent: whole parts lie within the bounds,
    fractions are not looked at.
    """
    if low is not None and high is not None and low > high:
        return None
    written: list[str] = []
    fraction = r"(\.[0-9]+)?"
    if low is None or low < 0:
        negative = _naturals(0 if high is None or high >= 0 else int(-high), None if low is None else int(-low))
        if negative is not None:
            written.append(f"-({negative}){fraction}")
    elif low == 0:
        written.append(r"-0(\.0+)?")
    if high is None or high >= 0:
        positive = _naturals(0 if low is None or low < 0 else int(low), None if high is None else int(high))
        if positive is not None:
            written.append(f"({positive}){fraction}")
    return "|".join(written) or None


def _naturals(low: int, high: int | None) -> str | None:
    """From `low`, which is not negative, to `high`; as many digits as there may be in any number if that is None."""
    if high is not None and (low > high or len(str(high)) > _MAX_DIGITS):
        return None if low > high else _naturals(low, None)
    first = str(low)
    if len(first) > _MAX_DIGITS:
        return f"[1-9][0-9]{{{_MAX_DIGITS}}}"
    written: list[str] = []
    if high is None:
        written.append(_between(first, "9" * len(first)))
        written.append(f"[1-9][0-9]{{{len(first)},{_MAX_DIGITS}}}")
    else:
        last = str(high)
        for digits in range(len(first), len(last) + 1):
            least = first if digits == len(first) else "1" + "0" * (digits - 1)
            most = last if digits == len(last) else "9" * digits
            written.append(_between(least, most))
    return "|".join(written)


def _between(low: str, high: str) -> str:
    """The numbers of as many digits as both have."""
    if low == high:
        return low
    size = len(low)
    if low == "0" * size and high == "9" * size:
        return f"[0-9]{{{size}}}"
    if size == 1:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return f"{low[0]}({_between(low[1:], high[1:])})"
    written: list[str] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * (size - 1):
        written.append(f"{low[0]}({_between(low[1:], '9' * (size - 1))})")
        first += 1
    if high[1:] != "9" * (size - 1):
        written.append(f"{high[0]}({_between('0' * (size - 1), high[1:])})")
        last -= 1
    if first <= last:
        written.append(f"[{first}-{last}][0-9]{{{size - 1}}}")
    return "|".join(written)
