"""Arguments as a request: OpenAPI's parameter styles (RFC 6570), JSON bodies and forms."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from yarl import URL

from asynclm.adapters.tools.http import HttpRequest
from asynclm.adapters.tools.openapi.parameters import Argument, Signature
from asynclm.cml.tools import CallError

_RESERVED: Final = ":/?#[]@!$&'()*+,;="
_TEMPLATE: Final = "/?:@!$&'()*+,;=~%{}"  # what may stand in a path as the document has it
_SEPARATORS: Final = {"form": ",", "spaceDelimited": "%20", "pipeDelimited": "|"}

Pairs = list[tuple[str, str]]


def request(
    method: str, base: URL, path: str, signature: Signature, arguments: Mapping[str, Any], *, repeatable: bool
) -> HttpRequest:
    """The request that a call with these (checked) arguments means. Raises `CallError` for one that can't be sent."""
    path, _, fixed = quote(path, safe=_TEMPLATE).partition("?")
    query = [fixed] if fixed else []
    headers: dict[str, str] = {}
    cookies: list[str] = []
    fields: list[tuple[Argument, Any]] = []
    for argument in signature.arguments:
        if argument.name not in arguments:
            continue
        value = arguments[argument.name]
        if argument.json and argument.location != "body":
            value = _compact(value)
        match argument.location:
            case "path":
                path = path.replace(f"{{{quote(argument.key or '', safe=_TEMPLATE)}}}", _path(argument, value))
            case "query":
                query += [f"{name}={text}" for name, text in pairs(argument, value)]
            case "header":
                headers[argument.key or ""] = _header(argument, value)
            case "cookie":
                cookies += [f"{name}={text}" for name, text in pairs(argument, value)]
            case "body":
                fields.append((argument, value))
    if cookies:
        headers["Cookie"] = "; ".join(cookies)
    body, media_type = _body(signature, fields)
    if body is not None:
        headers["Content-Type"] = media_type
    url = URL(f"{base}".rstrip("/") + path + (f"?{'&'.join(query)}" if query else ""), encoded=True)
    return HttpRequest(method=method, url=url, headers=headers, body=body, repeatable=repeatable)


def pairs(argument: Argument, value: Any) -> Pairs:
    """Name and value pairs, percent-encoded, in a style of the query (cookies and forms have them, too)."""
    name = quote(argument.key or "", safe="[]")
    if value is None:
        return []
    if isinstance(value, dict):
        items = [(str(key), each) for key, each in value.items() if each is not None]
        if argument.style == "deepObject":
            return list(_deep(name, dict(items), argument))
        if argument.explode:
            return [(quote(key, safe="[]"), _quoted(each, argument)) for key, each in items]
        flat = [part for key, each in items for part in (quote(key, safe=""), _quoted(each, argument))]
        return [(name, _SEPARATORS.get(argument.style, ",").join(flat))]
    if isinstance(value, list):
        texts = [_quoted(each, argument) for each in value if each is not None]
        if argument.style == "deepObject":
            return [(f"{name}[]", text) for text in texts]
        if argument.explode:
            return [(name, text) for text in texts]
        return [(name, _SEPARATORS.get(argument.style, ",").join(texts))] if texts else []
    return [(name, _quoted(value, argument))]


def _deep(name: str, value: Mapping[str, Any], argument: Argument) -> Iterable[tuple[str, str]]:
    for key, each in value.items():
        inner = f"{name}[{quote(key, safe='')}]"
        if isinstance(each, dict):
            yield from _deep(inner, each, argument)
        elif isinstance(each, list):
            yield from ((f"{inner}[]", _quoted(item, argument)) for item in each)
        elif each is not None:
            yield inner, _quoted(each, argument)


def _path(argument: Argument, value: Any) -> str:
    text = _expanded(argument, value, lambda each: quote(each, safe=""))
    plain = text.lower().replace("%2e", ".")
    if not text or plain in (".", ".."):
        raise CallError("invalid_arguments", f"argument {argument.name!r}: {_text(value)!r} can't be part of a path")
    if argument.style == "label":
        return f".{text}"
    if argument.style == "matrix":
        return "".join(f";{name}={each}" for name, each in pairs(argument, value)) or f";{argument.key}"
    return text


def _header(argument: Argument, value: Any) -> str:
    text = _expanded(argument, value, lambda each: each)
    if not text.isprintable():
        raise CallError("invalid_arguments", f"argument {argument.name!r}: a header can't hold control characters")
    return text


def _expanded(argument: Argument, value: Any, encode: Any) -> str:
    """In the style `simple`: lists and objects with commas."""
    separator = "." if argument.style == "label" and argument.explode else ","
    if isinstance(value, list):
        return separator.join(encode(_text(each)) for each in value)
    if isinstance(value, dict):
        joint = "=" if argument.explode else ","
        return separator.join(f"{encode(str(key))}{joint}{encode(_text(each))}" for key, each in value.items())
    return str(encode(_text(value)))


def _quoted(value: Any, argument: Argument) -> str:
    return quote(_text(value), safe=_RESERVED.replace("&", "").replace("#", "") if argument.reserved else "")


def _text(value: Any) -> str:
    """A value in a URL, a header or a form."""
    match value:
        case str():
            return value
        case None:
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case bool() | dict() | list():
            return _compact(value)
    return str(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _body(signature: Signature, fields: list[tuple[Argument, Any]]) -> tuple[bytes | None, str]:
    if signature.encoding is None or not fields:
        return None, ""
    whole = fields[0][1] if fields[0][0].key is None else None
    media_type = signature.media_type
    match signature.encoding:
        case "json":
            value = {argument.key: each for argument, each in fields} if fields[0][0].key is not None else whole
            return _compact(value).encode(), media_type
        case "text":
            return _text(whole).encode(), media_type
        case "form":
            return "&".join(f"{name}={text}" for name, text in _form(fields, whole)).encode(), media_type
        case "multipart":
            return _multipart(fields, whole)


def _form(fields: list[tuple[Argument, Any]], whole: Any) -> Pairs:
    if whole is not None:
        return [(quote(str(name), safe="[]"), quote(_text(each), safe="")) for name, each in dict(whole).items()]
    found: Pairs = []
    for argument, value in fields:
        if argument.json or (isinstance(value, dict) and argument.style == "form"):
            found += [(quote(argument.key or "", safe="[]"), quote(_compact(value), safe=""))]
        else:
            found += pairs(argument, value)
    return found


def _multipart(fields: list[tuple[Argument, Any]], whole: Any) -> tuple[bytes, str]:
    plain = Argument(name="", location="body", key=None, required=False)
    values: list[tuple[Argument, str | None, Any]] = [(argument, argument.key, value) for argument, value in fields]
    if whole is not None:
        values = [(plain, name, value) for name, value in dict(whole).items()]
    boundary = f"asynclm-{os.urandom(16).hex()}"
    parts = []
    for argument, name, value in values:
        shown = urlencode({"": str(name)})[1:].replace("+", " ")
        for each in value if isinstance(value, list) else [value]:
            kind = "application/json" if isinstance(each, dict | list) else argument.media_type
            kind = kind or ("application/octet-stream" if argument.file else "")
            head = f'Content-Disposition: form-data; name="{shown}"' + (
                f'; filename="{shown}"' if argument.file else ""
            )
            head += f"\r\nContent-Type: {kind}" if kind else ""
            text = _compact(each) if argument.json else _text(each)
            parts.append(f"--{boundary}\r\n{head}\r\n\r\n{text}\r\n")
    return ("".join(parts) + f"--{boundary}--\r\n").encode(), f"multipart/form-data; boundary={boundary}"
