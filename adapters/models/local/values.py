"""Grammar rules for the arguments of calls, from JSON schemas: as Python literals, or as JSON."""

from __future__ import annotations

import json
import keyword
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from asynclm.cml.tokens import TOKEN_START

from . import patterns, ranges
from .schemas import of_type, simplify, types

_MAX_COUNTED: Final = 4_000  # characters or items: longer bounds are not held
_MAX_TRACKED: Final = 60  # properties of one object of which none comes twice, and required ones come

# One character of a string, by kind of quotes; `text` are those that stand for themselves.
_UNICODE: Final = r"u([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"
_BEYOND: Final = (
    r"U(0010[0-9a-fA-F]{4}|000[1-9a-fA-F][0-9a-fA-F]{4}|0000([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))"
)
_PYTHON_ESCAPE: Final = rf"\\([^xuUN\n\r\x00]|x[0-9a-fA-F]{{2}}|{_UNICODE}|{_BEYOND})"
_PYTHON_KNOWN_ESCAPE: Final = rf"\\([\\'\"abfnrtv]|x[0-9a-fA-F]{{2}}|{_UNICODE}|{_BEYOND})"
_JSON_PAIR: Final = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_JSON_ESCAPE: Final = rf"\\([\"\\\/bfnrt]|{_UNICODE}|{_JSON_PAIR})"
_PLAIN: Final = r"[^'\"\\\x00-\x1f\x7f]"  # stands for itself in any string


def _triple(quote: str) -> str:
    one = rf"[^{quote}\\\r\x00]|\\([^xuUN\r\x00]|x[0-9a-fA-F]{{2}}|{_UNICODE}|{_BEYOND})"
    return f"{quote * 3}({quote}{{0,2}}({one}))*{quote * 3}"


_GAP: Final = r"[ \t\n]{0,32}"
PUNCTUATION: Final = tuple(
    f"{name}: /{_GAP}{mark}{_GAP}/"
    for name, mark in {
        "LBRACK": r"\[",
        "RBRACK": r"\]",
        "LBRACE": r"\{",
        "RBRACE": r"\}",
        "RPAREN": r"\)",
        "COLON": ":",
        "COMMA": ",",
        "EQUALS": "=",
        "HEAD": r"\[HEAD\]",
    }.items()
)
"""Terminals that take the white space around them; the rules in this module use them."""


class Members(NamedTuple):
    """Rules for the members of an object or call: `all` of them, and what follows others, a comma first if anything."""

    all: str
    rest: str
    counted: bool

    def after(self, bits: int) -> str:
        """What follows those members that have these bits (see `Values.bits`)."""
        return f"{self.rest}::{bits}" if self.counted else self.rest


class Values:
    """Rules for values in one notation, Python's or JSON's. `rules` are the lines of the grammar so far.

    Names of rules and terminals begin with `prefix`. A schema that was seen before costs nothing.
    """

    def __init__(self, prefix: str, *, python: bool) -> None:
        self._prefix = prefix
        self._python = python
        self._names: dict[str, str] = {}
        self._count = 0
        self._upper = upper = prefix.upper()
        self.rules: list[str] = []
        if python:
            single = rf"'([^'\\\n\r\x00]|{_PYTHON_ESCAPE})*'"
            double = rf"\"([^\"\\\n\r\x00]|{_PYTHON_ESCAPE})*\""
            string = f"{single}|{double}"
            # Apart from the others: right behind a quote llguidance can tell at once what plain text may follow in
            # either, but not in one that may be both.
            long = f"{upper}LONG: /{_triple(chr(39))}|{_triple(chr(34))}/"
            self._text = f"{upper}STRING | {upper}LONG"
            words = '"True" | "False" | "None" | "true" | "false" | "null"'
        else:
            string = rf'"([^"\\\x00-\x1f]|{_JSON_ESCAPE})*"'
            words = '"true" | "false" | "null"'
            long = ""
            self._text = f"{upper}STRING"
        self.rules += [
            long,
            f"{upper}STRING: /{string}/",
            f"{upper}INTEGER: /{ranges.integers(None, None)}/",
            f"{upper}NUMBER: /{ranges.decimals(None, None)}|-?({ranges.EXPONENTIAL})/",
            f"{upper}WORD: {words}",
            f"{prefix}any: {self._text} | {upper}NUMBER | {upper}WORD | {prefix}list | {prefix}dict",
            f"{prefix}list: LBRACK RBRACK | LBRACK {prefix}items RBRACK",
            f"{prefix}items: {prefix}any | {prefix}items COMMA {prefix}any",
            f"{prefix}dict: LBRACE RBRACE | LBRACE {prefix}pairs RBRACE",
            f"{prefix}pairs: {upper}STRING COLON {prefix}any | {prefix}pairs COMMA {upper}STRING COLON {prefix}any",
        ]
        self.anything = f"{prefix}any"

    def value(self, schema: Any, root: Mapping[str, Any]) -> str | None:
        """The rule for the values that `schema` allows; None if it allows none."""
        alternatives = simplify(schema, root)
        if alternatives is None:
            return self.anything
        # References mean something else in another tool's schema.
        key = f"{json.dumps(alternatives, sort_keys=True)}"
        if '"$ref"' in key:
            key += str(id(root))
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = self._name("v")
            written = [each for alternative in alternatives for each in self._one(alternative, root)]
            if not written:
                self._names[key] = ""
                return None
            self.rules.append(f"{name}: {' | '.join(dict.fromkeys(written))}")
        return name or None

    def _one(self, schema: dict[str, Any], root: Mapping[str, Any]) -> list[str]:
        allowed = types(schema)
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._constants([value for value in values if of_type(value, allowed)])
        written: list[str | None] = []
        for kind in allowed:
            match kind:
                case "string":
                    written.append(self._string(schema))
                case "integer" | "number":
                    written.append(self._number(schema, whole=kind == "integer"))
                case "boolean":
                    written += ['"True"', '"False"'] if self._python else []
                    written += ['"true"', '"false"']
                case "null":
                    written += ['"None"', '"null"'] if self._python else ['"null"']
                case "array":
                    written.append(self._array(schema, root))
                case "object":
                    written.append(self.members(schema, root))
        return [each for each in written if each]

    # ------------------------------------------------------------------ scalars

    def _string(self, schema: Mapping[str, Any]) -> str:
        least = _bound(schema.get("minLength")) or 0
        most = _bound(schema.get("maxLength"))
        pattern = schema.get("pattern")
        matching = patterns.whole(pattern) if isinstance(pattern, str) else None
        if not least and most is None and matching is None:
            return self._text
        if most is not None and most < least:
            return ""
        count = f"{{{least},{'' if most is None else most}}}"
        quotes = "'\"" if self._python else '"'
        escape = _PYTHON_KNOWN_ESCAPE if self._python else _JSON_ESCAPE
        control = r"\n\r\x00" if self._python else r"\x00-\x1f"
        any_of_that_length = "|".join(f"{q}([^{q}\\\\{control}]|{escape}){count}{q}" for q in quotes)
        if matching is None:
            return self.terminal(f"/{any_of_that_length}/")
        plain = self.terminal(f"{matching} & /{_PLAIN}{count}/")
        return self.terminal(" | ".join(f"{lark(quote)} {plain} {lark(quote)}" for quote in quotes))

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> str | None:
        low = _limits(schema.get("minimum"), schema.get("exclusiveMinimum"), max)
        high = _limits(schema.get("maximum"), schema.get("exclusiveMaximum"), min)
        if low is None and high is None:
            return f"{self._upper}INTEGER" if whole else f"{self._upper}NUMBER"
        if whole:
            least, most = None if low is None else math.ceil(low), None if high is None else math.floor(high)
            if least is not None and schema.get("exclusiveMinimum") == least:
                least += 1
            if most is not None and schema.get("exclusiveMaximum") == most:
                most -= 1
            written = ranges.integers(least, most)
        else:
            sign = "-" if high is not None and high < 0 else "-?" if low is None or low < 0 else ""
            plain = ranges.decimals(low, high)
            written = plain and f"{plain}|{sign}({ranges.EXPONENTIAL})"
        if written is None:
            return None
        return self.terminal(f"/{written}/")

    def _constants(self, values: Iterable[Any]) -> list[str]:
        words: dict[str, None] = {}
        written: list[str] = []
        for value in values:
            if isinstance(value, list | dict):
                structure = self._structure(value)
                written += [structure] if structure else []
            else:
                words |= dict.fromkeys(self._words(value))
        if words:
            written.append(self.terminal(" | ".join(map(lark, words))))
        return written

    def _words(self, value: Any) -> list[str]:
        """The ways to write a constant that is no list or object."""
        plain = json.dumps(value, ensure_ascii=False)
        ways = [plain, repr(value), ascii(value)] if self._python else [plain, json.dumps(value)]
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
            ways.append(str(int(value)))
        if isinstance(value, str):
            ways += [TOKEN_START.sub(r"\\x5b" if self._python else r"\\u005b", way) for way in ways]
        return [] if isinstance(value, str) and not _encodable(value) else ways

    def _structure(self, value: Any) -> str | None:
        """One list or object, as it stands."""
        if isinstance(value, list | dict):
            items = value if isinstance(value, list) else value.values()
            parts = [self._structure(item) for item in items]
            if isinstance(value, dict):
                keys = [self.key(key) for key in value]
                parts = [key and part and f"{key} COLON {part}" for key, part in zip(keys, parts, strict=True)]
            if not all(parts):
                return None
            inside = " COMMA ".join(part for part in parts if part)
            return f"LBRACK {inside} RBRACK" if isinstance(value, list) else f"LBRACE {inside} RBRACE"
        ways = self._words(value)
        return f"({' | '.join(map(lark, ways))})" if ways else None

    # ------------------------------------------------------------------ lists and objects

    def _array(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        firsts = schema.get("prefixItems")
        firsts = firsts if isinstance(firsts, list) else []
        rest = schema.get("items", schema.get("additionalItems", True) if firsts else True)
        if isinstance(rest, list):  # as it was before 2020-12
            firsts, rest = rest, schema.get("additionalItems", True)
        least = _bound(schema.get("minItems")) or 0
        most = _bound(schema.get("maxItems"))
        if not firsts and not least and most is None and rest is True:
            return f"{self._prefix}list"
        heads: list[str] = []
        for first in firsts[: _MAX_COUNTED if most is None else most]:
            head = self.value(first, root)
            if head is None:  # none may stand here, and so none behind it
                most, rest = len(heads), False
                break
            heads.append(head)
        item = None if most is not None and most <= len(heads) else self.value(rest, root)
        if len(heads) + (0 if item is None else math.inf) < least or (most is not None and most < least):
            return ""
        # From the last to the first: the list may end behind `least` items, and each but the first needs a comma.
        after = ""
        if item is not None:
            more = max(0, least - len(heads))
            bound = "" if most is None else str(most - len(heads))
            count = f"{{{more},{bound}}}"
            if heads:
                after = f"(COMMA {item}){count}"
            elif most == 1:
                after = item if more else f"{item}?"
            else:
                bound = "" if most is None else str(most - 1)
                after = f"{item} (COMMA {item}){{{max(0, more - 1)},{bound}}}"
                after = after if more else f"({after})?"
        for place in range(len(heads) - 1, -1, -1):
            comma = "COMMA " if place else ""
            after = f"{comma}{heads[place]} {after}"
            after = after if place < least else f"({after})?"
        return f"LBRACK {after} RBRACK"

    def members(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str | None:
        """The expression for an object, in braces; None if there is none."""
        if not {"properties", "required", "additionalProperties"} & schema.keys():
            return f"{self._prefix}dict"
        named, others, required = self.properties(schema, root)
        pairs: dict[str, str | None] = {}
        for name, value in named.items():
            key = self.key(name)
            pairs[name] = key and f"{key} COLON {value}"
        if not required <= pairs.keys():
            return None
        other = f"{self.key_besides(named)} COLON {others}" if others else None
        if not pairs and other is None:
            return "LBRACE RBRACE"
        return f"LBRACE {self.in_any_order(pairs, other, required).all} RBRACE"

    def properties(
        self, schema: Mapping[str, Any], root: Mapping[str, Any]
    ) -> tuple[dict[str, str], str | None, set[str]]:
        """The properties that an object may have, and their values; the values of others, if it may have others; and
        the properties that it must have.
        """
        declared = schema.get("properties")
        declared = declared if isinstance(declared, Mapping) else {}
        required = schema.get("required")
        required = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        others = self.value(schema.get("additionalProperties", True), root)
        if schema.get("patternProperties"):
            others = self.anything
            # A name of the pattern has to fit more than its own schema, or nothing but the pattern's.
        named = {name: self.value(part, root) for name, part in declared.items()}
        for name in required:
            if name not in named:
                named[name] = others or self.anything
        return {name: value for name, value in named.items() if value is not None}, others, set(required)

    def in_any_order(self, pairs: Mapping[str, str | None], other: str | None, required: set[str]) -> Members:
        """Rules for members in any order with commas between them, none twice, all required ones.

        `pairs` are the expressions of the members, by name (None: it is never written here), `other` that of members
        beside them, of which there may be any number.
        """
        names = self.order(pairs, required)
        tracked = {name: bit for bit, name in enumerate(names[:_MAX_TRACKED])}
        needed = sum(name in required for name in tracked)
        # llguidance 1.9 can't be given the number of a rule in which nothing depends on it.
        counted = bool(needed) or any(pairs[name] is not None for name in tracked)
        same = "::_" if counted else ""
        first, rest = self._name("f"), self._name("r")
        enough = f'"" %if is_ones([0:{needed}])' if needed else '""'
        begins, goes_on = [enough], [enough]
        for name in names:
            if pairs[name] is None:
                continue
            bit = tracked.get(name)
            becomes, unless = (same, "") if bit is None else (f"::set_bit({bit})", f" %if bit_clear({bit})")
            begins.append(f"{pairs[name]} {rest}{becomes}{unless}")
            goes_on.append(f"COMMA {pairs[name]} {rest}{becomes}{unless}")
        if other is not None:
            begins.append(f"{other} {rest}{same}")
            goes_on.append(f"COMMA {other} {rest}{same}")
        self.rules.append(f"{first}{same}: {' | '.join(begins)}")
        self.rules.append(f"{rest}{same}: {' | '.join(goes_on)}")
        return Members(f"{first}::0" if counted else first, rest, counted)

    def bits(self, names: Iterable[str], there: Iterable[str], required: set[str]) -> int:
        """What `Members.after` takes, of `names`, behind those that are `there`."""
        places = {name: place for place, name in enumerate(self.order(names, required))}
        return sum(1 << places[name] for name in there if places[name] < _MAX_TRACKED)

    @staticmethod
    def order(names: Iterable[str], required: set[str]) -> list[str]:
        """Required names first: the order of their bits."""
        return sorted(names, key=lambda name: name not in required)

    def key(self, name: str) -> str | None:
        """The ways to write a property's name in an object."""
        ways = dict.fromkeys(self._words(name))
        return f"({' | '.join(map(lark, ways))})" if ways else None

    def key_besides(self, names: Iterable[str]) -> str:
        """The terminal for the names of other properties than these."""
        taken = dict.fromkeys(way for name in names for way in self._words(name))
        if not taken:
            return f"{self._upper}STRING"
        return self.terminal(f"{self._upper}STRING & ~({' | '.join(map(lark, taken))})")

    def rule(self, expression: str) -> str:
        """A new rule for `expression`: its name."""
        name = self._name("x")
        self.rules.append(f"{name}: {expression}")
        return name

    def terminal(self, expression: str) -> str:
        """A new terminal for `expression`: its name."""
        name = self._name("V").upper()
        self.rules.append(f"{name}: {expression}")
        return name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{kind}{self._count}"


def lark(text: str) -> str:
    """`text` as a literal of the grammar."""
    return json.dumps(text)


def argument_name(name: str) -> bool:
    """Whether `name` can stand in front of an argument of a Python call."""
    # `ast` gives names in NFKC, so one in another form would never arrive.
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _bound(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_COUNTED:
        return None
    return int(value)


def _limits(inclusive: Any, exclusive: Any, choose: Any) -> Any:
    given = [
        each
        for each in (inclusive, exclusive)
        if isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
    ]
    return choose(given) if given else None
